//! Returns of a target from every point of its exchange.

use super::super::target::destroy;
use super::super::target_fixture::*;
use super::*;

/// The containers of a target and beside it, by their ids.
fn with_beside(named: Option<(&str, bool)>, beside: &[(&str, &str)]) -> TargetSeen {
    let container = |id: &str, running| {
        let seen = with_container(Some(&spec()), running, running).container.unwrap();
        ContainerSeen { id: id.into(), ..seen }
    };
    let beside = beside.iter().map(|(end, id)| (format!("zbs-vhost.{end}"), container(id, false)));
    TargetSeen {
        container: named.map(|(id, running)| container(id, running)),
        beside: beside.collect(),
        ..TargetSeen::default()
    }
}

#[test]
fn the_old_one_comes_back_from_wherever_the_exchange_ended() {
    let trial = Trial { old: Some(spec()), id: "old".into(), served: Vec::new(), restarts: None };
    let back = |named, beside: &[(&str, &str)]| {
        let seen = with_beside(named, beside);
        let back = bring_back(&spec().name, &trial, &seen, &policy()).unwrap().unwrap();
        let told = |step: &Step| match step {
            Step::StopContainer { id, .. } => format!("stop {id}"),
            Step::RemoveContainer { id, .. } => format!("remove {id}"),
            Step::RenameContainer { id, to, .. } => format!("{} is {to}", id.clone().unwrap()),
            other => other.name().to_string(),
        };
        [back.moves, back.starts, back.clears]
            .map(|it| it.iter().map(told).collect::<Vec<_>>().join(", "))
    };
    let start = "prepareSockets, startContainer, awaitTarget";
    assert_eq!(back(Some(("old", true)), &[]), ["", "", ""], "it was not even stopped");
    assert_eq!(back(Some(("old", true)), &[("next", "new")]), ["", "", "remove new"]);
    assert_eq!(back(Some(("old", false)), &[("next", "new")]), ["", start, "remove new"]);
    let between = back(None, &[("next", "new"), ("previous", "old")]);
    assert_eq!(between, ["old is zbs-vhost", start, "remove new"]);
    let replaced = back(Some(("new", true)), &[("previous", "old")]);
    let moves = "stop new, new is zbs-vhost.next, old is zbs-vhost";
    assert_eq!(replaced, [moves, start, "remove new"]);
}

#[test]
fn nothing_of_somebody_else_is_moved_for_an_exchange() {
    let trial = Trial { old: None, id: "old".into(), served: Vec::new(), restarts: None };
    let mut seen = with_beside(Some(("new", true)), &[("previous", "old")]);
    let back = |seen: &TargetSeen| bring_back(&spec().name, &trial, seen, &policy());
    seen.container.as_mut().unwrap().labels.clear();
    assert_eq!(back(&seen).unwrap_err().code, Code::ContainerNotOurs);
    seen.beside.clear();
    assert_eq!(back(&seen), Ok(None), "it cannot come back");

    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let serving = with_container(Some(&other), true, true);
    let mut seen = TargetSeen { beside: with_beside(None, &[("next", "left")]).beside, ..serving };
    let plan = ensured(&spec(), RECREATE, &seen).unwrap();
    assert_eq!(names(&plan)[..2], ["removeContainer", "createContainer"], "it is the agent's own");
    seen.beside[0].1.labels.clear();
    assert_eq!(ensured(&spec(), RECREATE, &seen).unwrap_err().code, Code::ContainerNotOurs);
    let destroyed = destroy(&spec(), true, &seen, &policy()).unwrap();
    assert_eq!(names(&destroyed), ["stopContainer", "removeContainer"], "and it stays");
}
