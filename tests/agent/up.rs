//! `vhost-agent up` where it cannot come to its end; that it does is shown on the real engine.

use crate::support::Place;
use serde_json::Value;

const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const WOULD_CHANGE: Option<i32> = Some(3);

fn notes(done: &Value) -> String {
    let notes = done["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap());
    notes.collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn it_stops_at_the_target_when_no_engine_can_run_it_with_an_agent_and_without() {
    let place = Place::on("two-node").mounted().settings("[pools]\ndefault_pages = 9\n");
    let mut agent = None;
    for served in [false, true] {
        if served {
            agent = Some(place.ready().await);
        }
        let up = place.run(&["up", "--output", "json"]).await;
        let done = up.json();
        assert_eq!((up.code, &done["prepare"]["outcome"]), (FAILED, &"holds".into()), "{up:?}");
        assert_eq!(done["deploy"]["errors"][0]["code"], "engine-absent", "{done}");
        assert_eq!(done["health"], Value::Null);
        let notes = notes(&done);
        assert!(notes.contains("the built-in target is taken, with one core"), "{notes}");
        let pages = "of 9 free pages of 2 MiB, the built-in target takes none, a deep probe 1";
        assert!(notes.contains(pages), "{notes}");
        assert!(notes.contains("stopped here, for the target could not be deployed"), "{notes}");
    }
    drop(agent);
}

#[tokio::test]
async fn it_stops_at_the_node_when_that_cannot_be_prepared() {
    let place = Place::on("two-node").mounted().settings("[pools]\ndefault_pages = 900000000\n");
    let up = place.run(&["up", "--kind", "built-in"]).await;
    assert_eq!(up.code, FAILED, "{up:?}");
    assert!(up.out.contains("== the node") && up.out.contains("error ("), "{}", up.out);
    assert!(up.out.contains("stopped here, for the node could not be prepared"), "{}", up.out);
    assert!(!up.out.contains("== the target") && !up.out.contains("is taken"), "{}", up.out);
}

#[tokio::test]
async fn a_plan_changes_nothing_and_wrong_words_are_wrong_usage() {
    let place = Place::on("two-node").settings("[pools]\ndefault_pages = 9\n");
    let before = place.snapshot();
    let plan = place.run(&["up", "--dry-run"]).await;
    assert_eq!(plan.code, WOULD_CHANGE, "{plan:?}");
    assert!(plan.out.contains("can be told when the node is prepared"), "{}", plan.out);
    for words in [&["up", "../x"][..], &["up", "--socket-dir", "tmp"], &["up", "--cores", "7-6"]] {
        assert_eq!(place.run(words).await.code, USAGE, "{words:?}");
    }
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn a_kind_that_is_configured_or_named_is_taken_as_it_is() {
    let place = Place::on("two-node").mounted().settings(
        "[pools]\ndefault_pages = 0\n[target]\nkind = \"spdk\"\nimage = \"registry/spdk:1\"\n",
    );
    let up = place.run(&["up", "--output", "json"]).await;
    assert!(up.code == FAILED && !notes(&up.json()).contains("built-in"), "{up:?}");
}
