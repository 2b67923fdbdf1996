//! What a target answers: replies in a stream without frames, in any pieces, and what each may be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use vhost_agent::spdk::disks::{Bdev, Controller};
use vhost_agent::spdk::methods::Version;
use vhost_agent::spdk::reply::{Reply, ReplyBuffer};

fuzz_target!(|input: &[u8]| {
    let Some((size, stream)) = input.split_first() else { return };
    let (whole, end) = read(stream.chunks(stream.len().max(1)));
    let (pieces, end_of_pieces) = read(stream.chunks(usize::from(*size % 32) + 1));
    assert_eq!(shown(&whole), shown(&pieces));
    assert_eq!(end, end_of_pieces);
    whole.iter().for_each(typed);
});

/// The replies of a stream, and how it ended: garbage, or whether within a reply.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Reply>, Result<bool, String>) {
    let (mut incoming, mut replies) = (ReplyBuffer::default(), Vec::new());
    for piece in pieces {
        incoming.buffer().extend_from_slice(piece);
        if let Err(why) = incoming.replies(|reply| replies.push(reply)) {
            return (replies, Err(why));
        }
    }
    (replies, Ok(incoming.is_half()))
}

fn shown(replies: &[Reply]) -> Vec<String> {
    replies.iter().map(|reply| format!("{reply:?}")).collect()
}

/// What is read of a reply; members that nobody reads may hold what no string can.
fn typed(reply: &Reply) {
    let Some(result) = &reply.result else { return };
    let bdevs: Vec<Bdev> = serde_json::from_str(result.get()).unwrap_or_default();
    let controllers: Vec<Controller> = serde_json::from_str(result.get()).unwrap_or_default();
    let version = serde_json::from_str::<Version>(result.get());
    if bdevs.len() + controllers.len() > 0 || version.is_ok() {
        assert!(serde_json::from_str::<IgnoredAny>(result.get()).is_ok());
    }
}
