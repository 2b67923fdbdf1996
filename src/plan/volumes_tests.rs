use proptest::prelude::*;

use super::*;
use crate::model::volume::SessionSeen;

fn spec() -> VolumeSpec {
    VolumeSpec {
        backing: serde_json::from_str(r#"{"kind":"aio","path":"/f"}"#).unwrap(),
        ..VolumeSpec::example("v")
    }
}

fn bdev(file: &str) -> BdevSeen {
    BdevSeen { file: Some(file.to_string()), bytes: 1 << 20, claimed: false }
}

fn controller(bdev: &str, sessions: usize) -> ControllerSeen {
    let session = SessionSeen { id: (0, 0), started: true, queues: 1 };
    ControllerSeen {
        bdev: Some(bdev.to_string()),
        read_only: false,
        sessions: vec![session; sessions],
    }
}

fn seen(bdev: Option<BdevSeen>, controller: Option<ControllerSeen>) -> VolumeSeen {
    VolumeSeen { bdev, controller, socket_is_given: true, served_by_another: None }
}

#[test]
fn the_bdev_comes_before_the_controller_and_what_holds_is_not_touched() {
    use VolumeStep::{CreateBdev, CreateController, GiveSocket};
    let plan = |seen: &VolumeSeen| bring_up(&spec(), seen).unwrap();
    assert_eq!(plan(&seen(None, None)), [CreateBdev, CreateController, GiveSocket]);
    assert_eq!(plan(&seen(Some(bdev("/f")), None)), [CreateController, GiveSocket]);
    let whole = seen(Some(bdev("/f")), Some(controller("v", 1)));
    assert!(plan(&whole).is_empty());
    assert_eq!(plan(&VolumeSeen { socket_is_given: false, ..whole }), [GiveSocket]);
}

#[test]
fn a_bdev_of_that_name_that_holds_something_else_is_not_taken() {
    let fault = bring_up(&spec(), &seen(Some(bdev("/other")), None)).unwrap_err();
    assert_eq!(fault.code, Code::BdevBelongsToAnother);
    assert!(fault.text.contains("/other"), "{fault}");
    let small = seen(Some(BdevSeen { file: None, bytes: 7, claimed: false }), None);
    let memory = VolumeSpec::example("v");
    assert_eq!(bring_up(&memory, &small).unwrap_err().code, Code::BdevBelongsToAnother);
}

#[test]
fn a_bdev_gets_no_second_controller() {
    let served = Some("other".to_string());
    let seen = VolumeSeen { served_by_another: served, ..seen(Some(bdev("/f")), None) };
    assert_eq!(bring_up(&spec(), &seen).unwrap_err().code, Code::BdevBelongsToAnother);
}

#[test]
fn a_bdev_that_somebody_else_uses_stays_when_its_volume_goes() {
    let nothing = VolumeSeen::default();
    let whole = seen(Some(bdev("/f")), Some(controller("v", 0)));
    let takes = |seen: &VolumeSeen| take_away(seen, &nothing).unwrap();
    assert_eq!(takes(&whole), [VolumeStep::DeleteController, VolumeStep::DeleteBdev]);
    let claimed = BdevSeen { claimed: true, ..bdev("/f") };
    assert_eq!(
        takes(&VolumeSeen { bdev: Some(claimed), ..whole.clone() }),
        [VolumeStep::DeleteController]
    );
    let served = VolumeSeen { served_by_another: Some("s".to_string()), controller: None, ..whole };
    assert_eq!(takes(&served), []);
}

#[test]
fn a_disk_is_not_made_smaller_under_a_guest() {
    let memory = VolumeSpec::example("v");
    let with = |sessions| seen(Some(bdev("/f")), Some(controller("v", sessions)));
    assert!(may_resize(&memory, &with(1), 1).is_ok() && may_resize(&memory, &with(0), 0).is_ok());
    assert_eq!(may_resize(&memory, &with(1), 0).unwrap_err().code, Code::VolumeInUse);
    assert!(may_resize(&spec(), &with(1), 0).is_ok(), "its file has the size that it has");
}

#[test]
fn what_one_volume_writes_to_no_other_one_does() {
    use std::sync::Arc;
    let (a, b): (TargetName, TargetName) = ("a".parse().unwrap(), "b".parse().unwrap());
    let of = |name: &str, path: &str, read_only| VolumeSpec {
        name: name.parse().unwrap(),
        backing: serde_json::from_value(serde_json::json!({"kind": "aio", "path": path})).unwrap(),
        read_only,
        ..VolumeSpec::example("v")
    };
    let there = of("v", "/f", false);
    let volumes = Arc::new([(there.name.clone(), there.clone())].into());
    let desired = Desired { volumes: [(a.clone(), volumes)].into(), ..Desired::default() };
    let evaluate = |target: &TargetName, new: &[VolumeSpec]| {
        let is_one =
            |one: &str, other: &str| one.trim_end_matches('~') == other.trim_end_matches('~');
        one_writer_each(target, new, &desired, is_one).map_err(|fault| (fault.code, fault.text))
    };
    assert_eq!(evaluate(&a, std::slice::from_ref(&there)), Ok(()), "it is that one");
    assert_eq!(evaluate(&b, &[of("v", "/g", false), of("r", "/f", true)]), Ok(()));
    for (target, new) in
        [(&a, of("w", "/f", false)), (&b, of("v", "/f", false)), (&b, of("w", "/f~", false))]
    {
        let (code, text) = evaluate(target, &[new]).unwrap_err();
        assert!(code == Code::VolumeConflict && text.contains("the volume v of a"), "{text}");
    }
    evaluate(&b, &[of("x", "/h", false), of("y", "/h", false)]).unwrap_err();
    assert_eq!(evaluate(&b, &[VolumeSpec::example("m"), VolumeSpec::example("n")]), Ok(()));
}

#[test]
fn a_controller_that_is_wrong_is_made_anew_only_without_a_guest() {
    use VolumeStep::{CreateBdev, CreateController, DeleteController, GiveSocket};
    let wrong = |sessions| seen(Some(bdev("/f")), Some(controller("w", sessions)));
    let plan = bring_up(&spec(), &wrong(0)).unwrap();
    assert_eq!(plan, [DeleteController, CreateController, GiveSocket]);
    assert_eq!(bring_up(&spec(), &wrong(1)).unwrap_err().code, Code::VolumeDrift);
    // Deleted under it: making the bdev again does not help.
    let gone = |sessions| {
        let controller = ControllerSeen { bdev: None, ..controller("v", sessions) };
        seen(None, Some(controller))
    };
    let plan = bring_up(&spec(), &gone(0)).unwrap();
    assert_eq!(plan, [DeleteController, CreateBdev, CreateController, GiveSocket]);
    assert_eq!(bring_up(&spec(), &gone(1)).unwrap_err().code, Code::VolumeDrift);
}

#[test]
fn session_that_does_not_start_makes_its_volume_stuck() {
    let seen = seen(Some(bdev("/f")), Some(controller("v", 1)));
    assert_eq!(evaluate(&seen, None).0, VolumeState::Serving);
    for (fault, part) in [
        (SessionFault::Silent, "needs a restart"),
        (SessionFault::Silent, "unless that VM is paused"),
        (SessionFault::Refused, "want of I/O buffers"),
    ] {
        let (state, reason) = evaluate(&seen, Some(fault));
        assert_eq!(state, VolumeState::Stuck);
        assert!(reason.contains(part), "{reason}");
    }
}

fn any_seen() -> impl Strategy<Value = VolumeSeen> {
    let file = prop_oneof![Just(None), Just(Some("/f".to_string())), Just(Some("/x".to_string()))];
    let bdev = (file, any::<bool>()).prop_map(|(file, claimed)| BdevSeen {
        file,
        bytes: 1 << 20,
        claimed,
    });
    let bdev = proptest::option::of(bdev);
    let name = prop_oneof![Just(None), Just(Some("v".to_string())), Just(Some("w".to_string()))];
    let session = (any::<bool>(), 0..3u64).prop_map(|(started, queues)| SessionSeen {
        id: (0, 0),
        started,
        queues,
    });
    let sessions = proptest::collection::vec(session, 0..3);
    let controller = (name, any::<bool>(), sessions)
        .prop_map(|(bdev, read_only, sessions)| ControllerSeen { bdev, read_only, sessions });
    let other = prop_oneof![Just(None), Just(Some("o".to_string()))];
    (bdev, proptest::option::of(controller), any::<bool>(), other).prop_map(
        |(bdev, controller, socket_is_given, served_by_another)| VolumeSeen {
            bdev,
            controller,
            socket_is_given,
            served_by_another,
        },
    )
}

proptest! {
    #[test]
    fn nothing_is_deleted_under_a_guest_and_everything_in_its_order(
        seen in any_seen(),
        before in any_seen(),
    ) {
        use VolumeStep::{CreateBdev, CreateController, DeleteBdev, DeleteController};
        let guests = seen.controller.as_ref().is_some_and(|it| !it.sessions.is_empty());
        for steps in [bring_up(&spec(), &seen), take_away(&seen, &before)].into_iter().flatten() {
            let at = |step| steps.iter().position(|it| *it == step);
            let deletes = at(DeleteBdev).or(at(DeleteController));
            prop_assert!(!(guests && deletes.is_some()));
            let used = seen.bdev.as_ref().is_some_and(|bdev| bdev.claimed);
            prop_assert!(at(DeleteBdev).is_none() || seen.served_by_another.is_none() && !used);
            if let (Some(bdev), Some(controller)) = (at(CreateBdev), at(CreateController)) {
                prop_assert!(bdev < controller);
            }
            if let (Some(bdev), Some(controller)) = (at(DeleteBdev), at(DeleteController)) {
                prop_assert!(controller < bdev);
            }
            // A controller is made only where there is none, and none is left without its bdev.
            let makes = at(CreateController).is_some();
            prop_assert!(!makes || seen.controller.is_none() || at(DeleteController).is_some());
            prop_assert!(!makes || seen.bdev.is_some() || at(CreateBdev).is_some());
        }
        // What was there before is not taken away again by who could not bring about the rest.
        let undone = take_away(&seen, &before).unwrap_or_default();
        prop_assert!(before.bdev.is_none() || !undone.contains(&DeleteBdev));
        prop_assert!(before.controller.is_none() || !undone.contains(&DeleteController));
    }
}
