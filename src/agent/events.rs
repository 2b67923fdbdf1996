//! Events of this node, for subscribers: each has a number, and the last ones are kept for subscribers
//! that reconnect.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;

use super::progress_sink::ProgressSink;
use crate::model::event::{Event, EventId, OverdueEvent, What};
use crate::overdue;

/// Number of events kept per kind for subscribers that reconnect, and the lag allowed to a slow one.
pub const KEPT: usize = 512;

/// Publisher of events; clones share it.
#[derive(Debug, Clone)]
pub struct Events(Arc<Hub>);

#[derive(Debug)]
struct Hub {
    /// Start time of this run of the agent, in ms. Distinguishes its event numbers from those of other runs.
    run: u64,
    kept: Mutex<EventHistory>,
    published: broadcast::Sender<Event>,
}

/// Last events of each kind: output of long work must not push out the status of targets.
#[derive(Debug, Default)]
struct EventHistory {
    last: u64,
    targets: VecDeque<Event>,
    work: VecDeque<Event>,
    overdue: VecDeque<Event>,
    findings: VecDeque<Event>,
}

impl Default for Events {
    fn default() -> Events {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let run = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or_default());
        let published = broadcast::Sender::new(KEPT);
        Events(Arc::new(Hub { run, kept: Mutex::default(), published }))
    }
}

impl Events {
    /// Publishes an event. Never waits.
    pub fn publish(&self, what: What) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let at = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        let event = Event { id: EventId { run: self.0.run, number: kept.last }, at, what };
        let of_kind = match &event.what {
            What::Target(_) => &mut kept.targets,
            What::Work(_) => &mut kept.work,
            What::Overdue(_) => &mut kept.overdue,
            What::Finding(_) => &mut kept.findings,
        };
        if of_kind.len() >= KEPT {
            of_kind.pop_front();
        }
        of_kind.push_back(event.clone());
        // Under the lock: subscribers get each event once, and in order.
        let _ = self.0.published.send(event);
    }

    /// Returns the kept events after `after`, and a subscription to new ones. If `after` is of another run, all kept
    /// events are returned; if it is `None`, no kept event is.
    pub fn follow(&self, after: Option<EventId>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = |after: EventId| {
            let known =
                |event: &&Event| event.id.run != after.run || event.id.number > after.number;
            let all = kept.targets.iter().chain(&kept.work).chain(&kept.overdue);
            let all = all.chain(&kept.findings);
            let mut missed: Vec<Event> = all.filter(known).cloned().collect();
            missed.sort_unstable_by_key(|event| event.id.number);
            missed
        };
        (after.map(missed).unwrap_or_default(), self.0.published.subscribe())
    }

    /// Number of subscribers.
    pub fn followers(&self) -> usize {
        self.0.published.receiver_count()
    }

    /// Publishes the owners' progress and overdue work, forever.
    pub async fn follow_work(self, progress: ProgressSink) {
        let (work, late) = (progress.watch(), overdue::watch());
        tokio::join!(self.follow_all(work, What::Work), self.follow_all(late, overdue_work));
    }

    async fn follow_all<T: Clone>(
        &self,
        mut receiver: broadcast::Receiver<T>,
        what: fn(T) -> What,
    ) {
        loop {
            match receiver.recv().await {
                Ok(event) => self.publish(what(event)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

fn overdue_work(notice: overdue::OverdueNotice) -> What {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    What::Overdue(OverdueEvent {
        owner: notice.kind.to_string(),
        subject: notice.subject,
        limit_ms: ms(notice.limit),
        took_ms: ms(notice.took),
        ended: notice.ended,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::prepare::{Progress, WorkEvent};
    use crate::model::step::Area;
    use crate::model::work::WorkId;

    fn line(text: &str) -> What {
        let event = WorkEvent::Line { area: Area::Engine, text: text.to_string() };
        What::Work(Progress { work: WorkId::default(), event })
    }

    fn texts(events: &[Event]) -> Vec<String> {
        let text = |event: &Event| match &event.what {
            What::Work(Progress { event: WorkEvent::Line { text, .. }, .. }) => text.clone(),
            other => panic!("{other:?}"),
        };
        events.iter().map(text).collect()
    }

    #[tokio::test]
    async fn who_comes_back_gets_what_was_missed_and_then_what_comes() {
        let events = Events::default();
        ["a", "b", "c"].iter().for_each(|text| events.publish(line(text)));
        let first = events.follow(Some(EventId { run: 0, number: 7 })).0;
        assert_eq!(texts(&first), ["a", "b", "c"], "of another run: all that is kept");
        let (missed, mut then) = events.follow(Some(first[0].id));
        assert_eq!(texts(&missed), ["b", "c"]);
        events.publish(line("d"));
        assert_eq!(texts(&[then.recv().await.unwrap()]), ["d"]);
        assert!(events.follow(None).0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn overdue_work_is_an_event_when_it_begins_and_when_it_ends() {
        let events = Events::default();
        let mut receiver = events.follow(None).1;
        tokio::spawn(events.clone().follow_work(ProgressSink::default()));
        tokio::task::yield_now().await;
        let work = tokio::time::sleep(Duration::from_secs(9));
        let about = ("target", "overdue-event".to_string());
        overdue::with_limit(Duration::from_secs(2), about, work).await;
        let mut ended = Vec::new();
        while ended.len() < 2 {
            // Other tests of this process have overdue work too.
            match receiver.recv().await.unwrap().what {
                What::Overdue(it) if it.subject == "overdue-event" => ended.push(it.ended),
                _ => {}
            }
        }
        assert_eq!(ended, [false, true]);
        let missed = events.follow(Some(EventId { run: 0, number: 0 })).0;
        assert!(missed.iter().any(|event| event.what.name() == "overdue"));
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let events = Events::default();
        (0..KEPT + 10).for_each(|nth| events.publish(line(&nth.to_string())));
        let kept = events.follow(Some(EventId { run: 0, number: 0 })).0;
        assert_eq!((kept.len(), texts(&kept)[0].as_str()), (KEPT, "10"));
    }
}
