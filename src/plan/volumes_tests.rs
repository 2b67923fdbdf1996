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
    BdevSeen { file: Some(file.to_string()), bytes: 1 << 20 }
}

fn controller(bdev: &str, sessions: usize) -> ControllerSeen {
    let session = SessionSeen { started: true, queues: 1 };
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
    let small = seen(Some(BdevSeen { file: None, bytes: 7 }), None);
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
fn a_controller_that_is_wrong_is_made_anew_only_without_a_guest() {
    use VolumeStep::{CreateBdev, CreateController, DeleteController, GiveSocket};
    let wrong = |sessions| seen(Some(bdev("/f")), Some(controller("w", sessions)));
    let plan = bring_up(&spec(), &wrong(0)).unwrap();
    assert_eq!(plan, [DeleteController, CreateController, GiveSocket]);
    assert_eq!(bring_up(&spec(), &wrong(1)).unwrap_err().code, Code::VolumeNotAsWanted);
    // Deleted under it: making the bdev again does not help.
    let gone = |sessions| {
        let controller = ControllerSeen { bdev: None, ..controller("v", sessions) };
        seen(None, Some(controller))
    };
    let plan = bring_up(&spec(), &gone(0)).unwrap();
    assert_eq!(plan, [DeleteController, CreateBdev, CreateController, GiveSocket]);
    assert_eq!(bring_up(&spec(), &gone(1)).unwrap_err().code, Code::VolumeNotAsWanted);
}

#[test]
fn a_session_that_does_not_start_is_stuck_and_one_that_is_starting_is_not() {
    let with = |started, queues| {
        let sessions = vec![SessionSeen { started, queues }];
        ControllerSeen { sessions, ..controller("v", 0) }
    };
    assert!(has_unstarted(&with(false, 0)));
    assert!(!has_unstarted(&with(false, 1)) && !has_unstarted(&with(true, 0)));
    let seen = seen(Some(bdev("/f")), Some(with(false, 0)));
    assert_eq!(judge(&seen, false).0, VolumeState::Serving);
    let (state, reason) = judge(&seen, true);
    assert_eq!(state, VolumeState::Stuck);
    assert!(reason.contains("VM needs a restart"), "{reason}");
}

fn any_seen() -> impl Strategy<Value = VolumeSeen> {
    let file = prop_oneof![Just(None), Just(Some("/f".to_string())), Just(Some("/x".to_string()))];
    let bdev = proptest::option::of(file.prop_map(|file| BdevSeen { file, bytes: 1 << 20 }));
    let name = prop_oneof![Just(None), Just(Some("v".to_string())), Just(Some("w".to_string()))];
    let session =
        (any::<bool>(), 0..3u64).prop_map(|(started, queues)| SessionSeen { started, queues });
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
            prop_assert!(at(DeleteBdev).is_none() || seen.served_by_another.is_none());
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
