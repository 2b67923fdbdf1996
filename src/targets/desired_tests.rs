//! Desired targets and volumes across restarts, limits, broken files and slow disks.

use std::time::Duration;

use super::*;
use crate::model::code::Code;
use crate::targets::writes::WRITE_TIMEOUT;

fn spec(name: &str) -> TargetSpec {
    let control_sock = format!("/sockets/{name}.sock").parse().unwrap();
    TargetSpec { control_sock, ..TargetSpec::example(name) }
}

fn open(dir: &tempfile::TempDir) -> DesiredTargets {
    let store = Store::open(dir.path(), dir.path()).unwrap();
    DesiredTargets::open(store, &TargetSettings::example()).unwrap()
}

fn names(desired: &DesiredTargets) -> Vec<String> {
    desired.watch().borrow().targets.keys().map(ToString::to_string).collect()
}

#[tokio::test]
async fn what_is_wanted_is_known_after_a_restart_and_what_is_not_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let desired = open(&dir);
    desired.want(&spec("a"), None).await.unwrap();
    desired.want(&spec("b.1"), None).await.unwrap();
    desired.want(&TargetSpec { memory_mib: 7, ..spec("b.1") }, None).await.unwrap();
    desired.forget(&"a".parse().unwrap()).await.unwrap();
    desired.forget(&"never".parse().unwrap()).await.unwrap();
    let again = open(&dir);
    assert_eq!(names(&again), ["b.1"]);
    assert_eq!(again.watch().borrow().targets.values().next().unwrap().memory_mib, 7);
}

#[tokio::test]
async fn no_more_is_desired_than_the_settings_say_but_what_was_before_stays() {
    let dir = tempfile::tempdir().unwrap();
    let before = open(&dir);
    for name in ["a", "b"] {
        before.want(&spec(name), None).await.unwrap();
    }
    let (target, volumes) = ("a".parse().unwrap(), ["v", "w"].map(VolumeSpec::example));
    before.want_volumes(&target, &volumes).await.unwrap();
    let store = Store::open(dir.path(), dir.path()).unwrap();
    let settings = TargetSettings { max_targets: 1, max_volumes: 1, ..TargetSettings::example() };
    let desired = DesiredTargets::open(store, &settings).unwrap();
    assert_eq!(names(&desired), ["a", "b"]);
    let again = TargetSpec { memory_mib: 7, ..spec("b") };
    desired.judge(&again).unwrap();
    desired.want(&again, None).await.unwrap();
    let code = |done: Result<(), Fault>| done.map_err(|fault| fault.code);
    assert_eq!(code(desired.judge(&spec("c"))), Err(Code::TooManyTargets));
    assert_eq!(code(desired.want(&spec("c"), None).await), Err(Code::TooManyTargets));
    let changed = VolumeSpec { read_only: true, ..VolumeSpec::example("v") };
    desired.want_volumes(&target, &[changed]).await.unwrap();
    let more = desired.want_volumes(&target, &[VolumeSpec::example("x")]).await;
    assert_eq!(code(more), Err(Code::TooManyVolumes));
    desired.forget_volumes(&target, &volumes.map(|it| it.name)).await.unwrap();
    desired.want_volumes(&target, &[VolumeSpec::example("x")]).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_broken_or_of_another_version_takes_no_other_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let desired = open(&dir);
    for name in ["a", "b", "c"] {
        desired.want(&spec(name), None).await.unwrap();
    }
    let path = |name: &str| dir.path().join("targets").join(name);
    std::fs::write(path("a.json"), "{\"version\"").unwrap();
    let newer = std::fs::read_to_string(path("b.json")).unwrap().replacen('1', "99", 1);
    std::fs::write(path("b.json"), newer).unwrap();
    assert_eq!(names(&open(&dir)), ["c"]);
    assert!(path("a.json.unusable").exists() && path("b.json.version-99").exists());
    assert_eq!(names(&open(&dir)), ["c"], "what was set aside stays there");
}

#[tokio::test(start_paused = true)]
async fn change_that_the_disk_takes_too_late_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let desired = open(&dir);
    desired.want(&spec("a"), None).await.unwrap();
    let (resume, hangs) = std::sync::mpsc::channel::<()>();
    let hangs = std::sync::Mutex::new(hangs);
    let path = dir.path().join("targets/b.json");
    let file = path.clone();
    let hung = desired.change(
        move |_, desired| {
            let _ = hangs.lock().unwrap().recv();
            match desired.targets.contains_key(&"b".parse().unwrap()) {
                true => std::fs::write(&file, "{}").unwrap(),
                false => std::fs::remove_file(&file).unwrap(),
            }
            Ok(())
        },
        |desired| {
            desired.targets.insert("b".parse().unwrap(), spec("b"));
            Ok(())
        },
    );
    let c = spec("c");
    let passes = tokio::time::advance(WRITE_TIMEOUT + Duration::from_millis(1));
    let (fault, behind, ()) = tokio::join!(hung, desired.want(&c, None), passes);
    assert_eq!(fault.unwrap_err().code, Code::StateUnwritable);
    assert_eq!(behind.unwrap_err().code, Code::StateUnwritable, "it waits for its turn");
    assert_eq!(names(&desired), ["a"]);
    resume.send(()).unwrap();
    resume.send(()).unwrap();
    desired.want(&spec("d"), None).await.unwrap();
    assert!(!path.exists());
    assert_eq!(names(&desired), ["a", "d"]);
    assert_eq!(names(&open(&dir)), ["a", "d"]);
}

#[tokio::test]
async fn volumes_are_known_after_a_restart_one_file_each() {
    let dir = tempfile::tempdir().unwrap();
    let (desired, target) = (open(&dir), "t".parse().unwrap());
    let specs: Vec<_> = ["a", "b", "c", "d"].map(VolumeSpec::example).into();
    desired.want_volumes(&target, &specs).await.unwrap();
    let read_only = VolumeSpec { read_only: true, ..specs[1].clone() };
    desired.want_volumes(&target, &[read_only.clone(), specs[0].clone()]).await.unwrap();
    let gone = [specs[0].name.clone(), "never".parse().unwrap()];
    desired.forget_volumes(&target, &gone).await.unwrap();
    let path = |name: &str| dir.path().join("volumes/t").join(name);
    std::fs::write(path("c.json"), "{\"version\":1,").unwrap();
    std::fs::copy(path("d.json"), path("e.json")).unwrap();
    let again = open(&dir).volumes(&target);
    let names: Vec<_> = again.keys().map(VolumeName::as_str).collect();
    assert_eq!(names, ["b", "d"], "a is not wanted, c is cut, e says that it is d");
    assert_eq!(again[&read_only.name], read_only);
    assert!(path("c.json.unusable").exists() && path("e.json.unusable").exists());
    desired.forget(&target).await.unwrap();
    assert!(desired.volumes(&target).is_empty() && open(&dir).volumes(&target).is_empty());
}
