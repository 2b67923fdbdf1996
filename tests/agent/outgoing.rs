//! Whom the agent calls: on a network of its own, with callers on the node and elsewhere, names that lead here
//! and there, and real listeners at the ends.

use std::fs;

use crate::support::absent::Absent;
use crate::support::certificates::certificate;
use crate::support::controller::Controller;
use crate::support::http::Reply;
use crate::support::network::{ELSEWHERE, THIRD, alone, call_from};
use crate::support::{Agent, Place, soon, task};
use nix::sys::signal::Signal;
use serde_json::json;

const PING: &str = "/host/ping";
const RESIZE: &str = "/zbs/primarystorage/vhost/resize";
const CONNECT: &str = "/host/connect";
const PREPARE: &str = "/zbs/primarystorage/vhost/target/prepareenv";

/// A node that listens everywhere, with more settings, and these lines in its hosts file.
fn node(settings: &str, hosts: &str) -> Place {
    let listens = "listen = \"0.0.0.0:0\"\n[access]\nopen = true\n[log]\nlevel = \"debug\"\n";
    let quick = "[callbacks]\nfirst_delay = \"50ms\"\nmax_delay = \"50ms\"\n";
    let place = Place::on("two-node").settings(&format!("{listens}{quick}{settings}"));
    let file = place.folder().join("hosts");
    fs::write(&file, format!("127.0.0.1 localhost\n{hosts}")).unwrap();
    place.prelude(&format!("mount --bind {} /etc/hosts || exit 99; ", file.display()))
}

/// A call that is done at once, of a caller at that address, to be called back there.
async fn ask(agent: &Agent, from: &str, number: u32, url: &str) -> Reply {
    ask_for(PING, agent, from, number, url).await
}

async fn ask_for(route: &str, agent: &Agent, from: &str, number: u32, url: &str) -> Reply {
    let (port, id) = (agent.address.port(), task(number));
    call_from(from, port, route, &[("taskuuid", &id), ("callbackurl", url)], "{}").await
}

async fn accepted(agent: &Agent, from: &str, number: u32, url: &str) {
    let reply = ask(agent, from, number, url).await;
    assert_eq!((reply.status, reply.text()), (200, ""));
}

#[track_caller]
fn must_be_refused(reply: &Reply, code: &str, texts: &[&str]) {
    assert_eq!((reply.status, reply.code().as_str()), (400, code), "{}", reply.text());
    for text in texts {
        assert!(reply.text().contains(text), "{}", reply.text());
    }
}

async fn connect(agent: &Agent, from: &str, url: &str) -> Reply {
    let body = json!({"hostUuid": "5f0c", "sendCommandUrl": url}).to_string();
    call_from(from, agent.address.port(), CONNECT, &[], &body).await
}

#[test]
fn loopback_is_called_for_the_node_itself_and_for_nobody_elsewhere() {
    alone(async || {
        let place = node("", "");
        let agent = place.ready().await;
        let controller = Controller::at("127.0.0.1:0").await;
        let refused = ask(&agent, ELSEWHERE, 1, &controller.url).await;
        let texts = ["127.0.0.1 is not called", "loopback", "outgoing.to"];
        must_be_refused(&refused, "callback-address-refused", &texts);
        for url in ["http://[::1]:80/", "http://0.0.0.0/", "http://169.254.169.254/latest"] {
            must_be_refused(&ask(&agent, ELSEWHERE, 1, url).await, "callback-address-refused", &[]);
        }
        let local = agent.post_task(PING, &task(2), &controller.url, "{}").await;
        assert_eq!(local.status, 200);
        let metadata = agent.post_task(PING, &task(3), "http://169.254.169.254/", "{}").await;
        must_be_refused(&metadata, "callback-address-refused", &["link-local"]);
        let seen = controller.wait(1).await;
        assert_eq!(seen[0].header("taskuuid"), Some(task(2).as_str()));
    });
}

#[test]
fn a_name_that_leads_to_loopback_is_refused_when_it_is_resolved_also_after_a_restart() {
    alone(async || {
        let place = node("", "127.0.0.1 inside.test\n");
        let mut agent = place.ready().await;
        let controller = Controller::at("127.0.0.1:0").await;
        // Its result is on the disk: it is one of a call that changes something.
        let url = controller.url_by("inside.test");
        assert_eq!(ask_for(RESIZE, &agent, ELSEWHERE, 1, &url).await.status, 200);
        agent.logged("the callback's address is refused").await;
        agent.logged("\"attempt\":3").await;
        let log = agent.log();
        assert_eq!(log.matches("the callback's address is refused").count(), 1, "{log}");
        assert!(log.contains("'inside.test' leads nowhere that may be called: 127.0.0.1"), "{log}");
        agent.signal(Signal::SIGKILL);
        agent.ended().await;
        drop(agent);
        let file = place.state().join("outbox").join(task(1)).with_extension("json");
        assert!(fs::read_to_string(&file).unwrap().contains("\"caller\": \"10.9.0.2\""));
        let agent = place.ready().await;
        soon("it is refused again", async {
            while agent.log().matches("the callback's address is refused").count() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(controller.seen().len(), 0);
    });
}

#[test]
fn of_a_names_addresses_only_those_that_may_be_called_are_and_the_name_is_what_they_hear() {
    alone(async || {
        let place = node("", "127.0.0.1 both.test\n10.9.0.2 both.test\n10.9.0.3 both.test\n");
        let agent = place.ready().await;
        let inside = Controller::at("127.0.0.1:0").await;
        // At 10.9.0.2 nobody listens, so the third one is tried.
        let outside = Controller::at(&format!("{THIRD}:{}", inside.port())).await;
        let url = inside.url_by("both.test");
        accepted(&agent, ELSEWHERE, 1, &format!("{url}?token=verysecret")).await;
        let seen = outside.wait(1).await;
        let host = format!("both.test:{}", inside.port());
        assert_eq!(seen[0].header("host"), Some(host.as_str()));
        assert!(seen[0].first_line.ends_with("?token=verysecret HTTP/1.1"), "{:?}", seen[0]);
        assert_eq!(inside.seen().len(), 0);
    });
}

#[test]
fn with_callers_alone_a_caller_is_called_back_at_its_own_address_and_at_the_controllers() {
    alone(async || {
        let place = node("[outgoing]\nto = \"callers\"\n", "");
        let agent = place.ready().await;
        let (own, third) = (Controller::at("10.9.0.2:0").await, Controller::at("10.9.0.3:0").await);
        accepted(&agent, ELSEWHERE, 1, &own.url).await;
        own.wait(1).await;
        let refused = ask(&agent, ELSEWHERE, 2, &third.url).await;
        let texts = ["10.9.0.3 is not called", "neither who called nor the controller"];
        must_be_refused(&refused, "callback-address-refused", &texts);
        let of_another = connect(&agent, ELSEWHERE, &third.url).await;
        must_be_refused(&of_another, "send-command-address-refused", &["10.9.0.3", "outgoing.to"]);
        assert_eq!(connect(&agent, THIRD, &third.url).await.json()["success"], true);
        accepted(&agent, ELSEWHERE, 3, &third.url).await;
        let received = third.wait(2).await;
        assert!(received.iter().any(|call| call.header("taskuuid") == Some(task(3).as_str())));
        let kept = fs::read_to_string(place.state().join("controller.json")).unwrap();
        assert!(kept.contains("\"learntFrom\": \"10.9.0.3\""), "{kept}");
        let local = Controller::at("127.0.0.1:0").await;
        assert_eq!(agent.post_task(PING, &task(4), &local.url, "{}").await.status, 200);
        local.wait(1).await;
    });
}

#[test]
fn a_list_opens_what_it_names_and_nothing_else() {
    alone(async || {
        let place = node("[outgoing]\nto = [\"10.9.0.3\", \"127.0.0.0/8\"]\n", "");
        let agent = place.ready().await;
        let own = Controller::at("10.9.0.2:0").await;
        let listed = [Controller::at("10.9.0.3:0").await, Controller::at("127.0.0.1:0").await];
        let refused = ask(&agent, ELSEWHERE, 1, &own.url).await;
        must_be_refused(&refused, "callback-address-refused", &["10.9.0.2", "outgoing.to lists"]);
        for (number, controller) in (2..).zip(&listed) {
            accepted(&agent, ELSEWHERE, number, &controller.url).await;
            controller.wait(1).await;
        }
    });
}

#[test]
fn a_user_name_in_a_url_is_refused_and_secrets_not_repeated() {
    alone(async || {
        let place = node("", "");
        let agent = place.ready().await;
        let with_user = "http://somebody:verysecret@10.9.0.2/x";
        let refused = ask(&agent, ELSEWHERE, 1, with_user).await;
        must_be_refused(&refused, "callback-url-malformed", &["user's name"]);
        assert!(!refused.text().contains("secret") && !refused.text().contains("somebody"));
        let refused = connect(&agent, ELSEWHERE, with_user).await;
        must_be_refused(&refused, "invalid-body", &["user's name"]);
        assert!(!refused.text().contains("secret"));
        let absent = Absent::new();
        let url = format!("{}?token=verysecret", absent.url());
        assert_eq!(agent.post_task(PING, &task(2), &url, "{}").await.status, 200);
        assert_eq!(
            agent
                .post(CONNECT, &json!({"hostUuid": "5", "sendCommandUrl": url}).to_string())
                .await
                .status,
            200
        );
        agent.logged("\"attempt\":3").await;
        agent.logged("status cannot be reported").await;
        assert!(agent.log().contains(&absent.url()) && !agent.log().contains("verysecret"));
    });
}

#[test]
fn a_report_goes_where_the_operator_says_but_not_wherever_a_controller_does() {
    alone(async || {
        let inside = Controller::at("127.0.0.1:0").await;
        let place = node("", "127.0.0.1 inside.test\n");
        let mut agent = place.ready().await;
        let reply = connect(&agent, ELSEWHERE, &inside.url).await;
        must_be_refused(&reply, "send-command-address-refused", &["127.0.0.1 is not called"]);
        let named = inside.url_by("inside.test");
        assert_eq!(connect(&agent, ELSEWHERE, &named).await.status, 200);
        agent.logged("leads nowhere that may be called").await;
        assert_eq!(agent.stop().await.code(), Some(0));
        assert_eq!(inside.seen().len(), 0);
        let place = node(&format!("[report]\nurl = \"{}\"\n", inside.url), "");
        let agent = place.ready().await;
        let elsewhere = Controller::at("10.9.0.2:0").await;
        assert_eq!(connect(&agent, ELSEWHERE, &elsewhere.url).await.status, 200);
        inside.wait(1).await;
    });
}

#[test]
fn progress_is_not_sent_to_a_refused_url_and_the_call_continues() {
    alone(async || {
        let place = node("", "").mounted();
        let agent = place.ready().await;
        let inside = Controller::at("127.0.0.1:0").await;
        let context = json!({"api": "a5b1"});
        let body =
            json!({"hugepageNr": 10, "threadContext": context, "sendCommandUrl": inside.url});
        let port = agent.address.port();
        let reply = call_from(ELSEWHERE, port, PREPARE, &[], &body.to_string()).await;
        assert_eq!(reply.json()["success"], true, "{}", reply.text());
        agent.logged("a call's sendCommandUrl is ignored").await;
        assert_eq!(inside.seen().len(), 0);
        let local = agent.post(PREPARE, &body.to_string()).await;
        assert_eq!(local.json()["success"], true);
        inside.wait(1).await;
    });
}

#[test]
fn a_certificate_is_judged_by_the_name_and_not_by_the_address_that_was_called() {
    alone(async || {
        let (acceptor, ca) = certificate("controller.test");
        let place = node("", "127.0.0.1 controller.test\n127.0.0.1 other.test\n");
        let file = place.folder().join("ca.pem");
        fs::write(&file, ca).unwrap();
        let place = place.env("SSL_CERT_FILE", file.to_str().unwrap());
        let agent = place.ready().await;
        let controller = Controller::with_tls(acceptor).await;
        let (port, named) = (controller.port(), controller.url_by("controller.test"));
        assert_eq!(agent.post_task(PING, &task(1), &named, "{}").await.status, 200);
        let seen = controller.wait(1).await;
        assert_eq!(seen[0].header("host"), Some(format!("controller.test:{port}").as_str()));
        for (number, url) in (2..).zip([controller.url_by("other.test"), controller.url.clone()]) {
            assert_eq!(agent.post_task(PING, &task(number), &url, "{}").await.status, 200);
            let text =
                format!("cannot post to {url}: client error (Connect): invalid peer certificate");
            agent.logged(&text).await;
        }
        assert_eq!(controller.seen().len(), 1);
    });
}
