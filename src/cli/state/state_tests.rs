//! What is kept, carried from one state folder to another.
#![allow(clippy::disallowed_methods)]

use super::super::document::{Document, Imported, import};
use super::*;
use crate::model::units::{NumaNode, PageSize};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), dir.path()).unwrap();
    (dir, store)
}

fn target() -> StateItem {
    let url = "https://store.example/vhost.tar?signature=verysecret".parse().unwrap();
    let spec = TargetSpec { image_url: Some(url), ..TargetSpec::example("zbs-vhost") };
    StateItem::Target(Box::new(spec))
}

fn volume(name: &str, backing: Backing) -> StateItem {
    let spec = VolumeSpec { backing, ..VolumeSpec::example(name) };
    StateItem::Volume("zbs-vhost".parse().unwrap(), Box::new(spec))
}

fn raw(name: &str) -> StateItem {
    let params = json!({"pool": "p", "key": {"deep": "verysecret"}}).as_object().unwrap().clone();
    let method = "bdev_rbd_create".to_string();
    volume(name, Backing::Raw { method, params, delete_method: None })
}

fn node() -> StateItems {
    let pages = PoolPages { size: PageSize::MIB_2, node: NumaNode(1), pages: 360 };
    let identity = HostIdentity {
        host_uuid: "0123".to_string(),
        send_command_url: "http://user:verysecret@10.0.0.1:8080/x?token=verysecret".to_string(),
        version: "5.3".to_string(),
        learnt_from: Some("10.0.0.1".parse().unwrap()),
    };
    let malloc = Backing::Malloc { size_mib: 16, block_size: 4096 };
    let items = [
        target(),
        raw("raw.1"),
        volume("memory", malloc),
        StateItem::Reservations(vec![pages]),
        StateItem::Controller(identity),
    ];
    items.into_iter().map(|item| (item.name(), item)).collect()
}

#[test]
fn what_one_node_keeps_another_keeps_after_an_import_and_repeating_it_changes_nothing() {
    let ((_one, from), (_other, to)) = (store(), store());
    let imported = import(&from, &node(), false).unwrap();
    assert_eq!(imported.written.len(), 5);
    let bytes = serde_json::to_vec(&Document::of(&from, "one".to_string()).unwrap()).unwrap();
    let document = Document::read(&bytes).unwrap();
    assert_eq!(document.node(), "one");
    let items = document.items().unwrap();
    import(&to, &items, false).unwrap();
    assert_eq!(look(&to, StateItem::admit).unwrap().items, node());
    let again = import(&to, &items, false).unwrap();
    assert_eq!((again.same.len(), again.written.len(), again.replaced.len()), (5, 0, 0));
}

#[tokio::test]
async fn the_owners_read_what_was_imported_and_what_they_write_is_exported() {
    let (_dir, to) = store();
    import(&to, &node(), false).unwrap();
    let desired =
        crate::targets::desired::DesiredTargets::open(to.clone(), &Default::default()).unwrap();
    let name: TargetName = "zbs-vhost".parse().unwrap();
    let StateItem::Target(spec) = target() else { panic!() };
    assert_eq!(desired.get(&name), Some(*spec));
    let volumes: Vec<String> = desired.volumes(&name).keys().map(ToString::to_string).collect();
    assert_eq!(volumes, ["memory", "raw.1"]);
    let pages: Vec<PoolPages> = to.read(RESERVATIONS, Durability::Disk).unwrap().unwrap();
    assert_eq!(pages[0].pages, 360);
    let identity: HostIdentity = to.read(HostIdentity::FILE, Durability::Disk).unwrap().unwrap();
    assert_eq!(identity.host_uuid, "0123");
    let second = TargetSpec {
        control_sock: "/sockets/second.sock".parse().unwrap(),
        ..TargetSpec::example("second")
    };
    desired.want(&second, None).await.unwrap();
    desired.want_volumes(&name, &[VolumeSpec::example("third")]).await.unwrap();
    let items = Document::of(&to, String::new()).unwrap().items().unwrap();
    let second = StateItem::Target(Box::new(second));
    assert_eq!(items.get("targets/second.json"), Some(&second));
    let third = StateItem::Volume(name, Box::new(VolumeSpec::example("third")));
    assert_eq!(items.get("volumes/zbs-vhost/third.json"), Some(&third));
}

#[test]
fn what_differs_is_replaced_only_when_that_is_asked_for_and_what_is_not_spoken_of_is_left() {
    let (dir, store) = store();
    let mut items = node();
    import(&store, &items, false).unwrap();
    let other = volume("memory", Backing::Malloc { size_mib: 17, block_size: 512 });
    let new = volume("new", Backing::Malloc { size_mib: 1, block_size: 512 });
    items.remove("controller.json");
    items.insert(new.name(), new);
    items.insert(other.name(), other);
    let fault = import(&store, &items, false).unwrap_err();
    assert!(fault.text.contains("volumes/zbs-vhost/memory.json: --replace"), "{fault}");
    assert!(!dir.path().join("volumes/zbs-vhost/new.json").exists(), "nothing was written");
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let wanted = Imported {
        written: names(&["volumes/zbs-vhost/new.json"]),
        replaced: names(&["volumes/zbs-vhost/memory.json"]),
        same: names(&[
            "reservations.json",
            "targets/zbs-vhost.json",
            "volumes/zbs-vhost/raw.1.json",
        ]),
        left: names(&["controller.json"]),
    };
    assert_eq!(import(&store, &items, true).unwrap(), wanted);
    let kept = look(&store, StateItem::read).unwrap().items;
    assert_eq!(kept["volumes/zbs-vhost/memory.json"], items["volumes/zbs-vhost/memory.json"]);
    assert!(kept.contains_key("controller.json"));
}

#[test]
fn nothing_secret_is_shown_and_all_of_it_is_exported() {
    let (_dir, store) = store();
    import(&store, &node(), false).unwrap();
    for item in look(&store, StateItem::read).unwrap().items.values() {
        let shown = item.shown().to_string();
        assert!(!shown.contains("verysecret"), "{shown}");
    }
    assert!(raw("a").shown().to_string().contains("\"pool\""), "names are no secret");
    let document = serde_json::to_string(&Document::of(&store, String::new()).unwrap()).unwrap();
    assert_eq!(document.matches("verysecret").count(), 4);
}

fn document(items: Value) -> Result<StateItems, Fault> {
    let document = json!({
        "version": 1, "exportedAt": "2026-01-01T00:00:00Z", "agentVersion": "0.1.0", "node": "n",
        "things": items,
    });
    Document::read(document.to_string().as_bytes())?.items()
}

#[test]
fn a_thing_that_is_not_what_its_name_says_is_refused_by_name() {
    let target = target().value();
    let volume = raw("a").value();
    let with = |value: &Value, pointer: &str, new: Value| {
        let mut value = value.clone();
        *value.pointer_mut(pointer).unwrap() = new;
        value
    };
    let mut unknown = target.clone();
    unknown["spec"]["colour"] = "red".into();
    let pool = json!({"size": "2M", "node": 0, "pages": 1});
    let mut odd_pool = pool.clone();
    odd_pool["colour"] = 1.into();
    for (name, value, part) in [
        ("lock", json!(1), "lock is nothing that this agent keeps"),
        ("outbox/1.json", json!({}), "is nothing that"),
        ("../../etc/passwd", json!({}), "is nothing that"),
        ("targets/../../x.json", target.clone(), "is nothing that"),
        ("targets/..", target.clone(), "belongs into targets/zbs-vhost.json"),
        ("targets/zbs-vhost", target.clone(), "belongs into"),
        ("targets/a.json", target.clone(), "belongs into targets/zbs-vhost.json"),
        ("volumes/b/a.json", volume.clone(), "belongs into volumes/zbs-vhost/a.json"),
        ("targets/a.json", json!({}), "missing field `spec`"),
        ("targets/a.json", json!({"version": 1}), "targets/a.json cannot be read: missing field"),
        ("targets/zbs-vhost.json", with(&target, "/version", 2.into()), "is of version 2"),
        ("volumes/zbs-vhost/a.json", with(&volume, "/version", 7.into()), "is of version 7"),
        ("targets/zbs-vhost.json", unknown, "has spec.colour, which"),
        ("targets/zbs-vhost.json", with(&target, "/spec/controlSock", "/a/b".into()), "cannot be"),
        ("targets/zbs-vhost.json", with(&target, "/spec/name", "../x".into()), "cannot be read"),
        (
            "volumes/zbs-vhost/a.json",
            with(&volume, "/spec/backing/method", "spdk_kill_instance".into()),
            "volumes/zbs-vhost/a.json cannot be",
        ),
        ("reservations.json", json!([pool, pool]), "one pool is in it twice"),
        ("reservations.json", json!([odd_pool]), "has [0].colour"),
        ("reservations.json", json!({}), "reservations.json cannot be read"),
        ("controller.json", json!({"sendCommandUrl": "ftp://x"}), "sendCommandUrl"),
    ] {
        let fault = document(json!({ name: value })).unwrap_err();
        assert!(fault.text.contains(part), "{name}: {fault}");
    }
}

#[test]
fn a_volume_whose_socket_would_not_fit_its_target_is_refused() {
    let mut deep = target().value();
    deep["spec"]["socketDir"] = format!("/{}", "x".repeat(106)).into();
    let volume = raw("a");
    let items = json!({"targets/zbs-vhost.json": deep, volume.name(): volume.value()});
    let fault = document(items).unwrap_err();
    assert!(fault.code == Code::SocketPathTooLong && fault.text.contains("a.json"), "{fault}");
}

#[test]
fn a_document_that_is_cut_off_foreign_or_newer_is_refused_with_the_place() {
    let (_dir, store) = store();
    import(&store, &node(), false).unwrap();
    let whole = serde_json::to_vec_pretty(&Document::of(&store, String::new()).unwrap()).unwrap();
    for length in 1..whole.len() {
        let fault = Document::read(&whole[..length]).unwrap_err();
        assert!(fault.text.contains("cut off") && fault.text.contains(" at line "), "{fault}");
    }
    for (text, part) in [
        ("", "cut off"),
        ("<html>", "no JSON: expected value at line 1 column 1"),
        ("[]", "no exported state"),
        ("{}", "no exported state"),
        (r#"{"version":1,"spec":{}}"#, "no exported state"),
        (r#"{"version":1,"things":{},"more":1}"#, "no exported state"),
        (r#"{"version":2,"things":[]}"#, "of version 2, and this agent knows 1"),
    ] {
        let fault = Document::read(text.as_bytes()).unwrap_err();
        assert!(fault.text.contains(part), "{text}: {fault}");
    }
}

#[test]
fn an_unusable_file_is_reported_kept_and_blocks_the_export() {
    let (dir, store) = store();
    import(&store, &node(), false).unwrap();
    std::fs::write(dir.path().join("reservations.json"), "[{").unwrap();
    std::fs::write(dir.path().join("volumes/stray"), "no folder").unwrap();
    let kept = look(&store, StateItem::read).unwrap();
    assert_eq!((kept.items.len(), kept.unusable.len()), (4, 1));
    let fault = Document::of(&store, String::new()).unwrap_err();
    assert!(fault.text.contains("reservations.json is no JSON"), "{fault}");
    assert!(dir.path().join("reservations.json").exists());
    let fault = import(&store, &node(), false).unwrap_err();
    assert!(fault.text.contains("reservations.json"), "{fault}");
    assert_eq!(import(&store, &node(), true).unwrap().replaced, ["reservations.json"]);
}

#[test]
fn what_waits_for_the_controller_is_shown() {
    let (_dir, store) = store();
    let entry = |result: Value| json!({"callbackUrl": "http://c/x?t=1", "result": result});
    store.write("outbox/b.json", &entry(json!({"body": "{}"})), Durability::Disk).unwrap();
    store.write("outbox/a.json", &entry(Value::Null), Durability::Disk).unwrap();
    let waiting = |task: &str, has_result| PendingItem {
        task: task.to_string(),
        callback_url: "http://c/x?…".to_string(),
        has_result,
    };
    let kept = look(&store, StateItem::read).unwrap();
    assert_eq!(kept.outbox, [waiting("a", false), waiting("b", true)]);
    assert!(Document::of(&store, String::new()).unwrap().items().unwrap().is_empty());
}
