//! Relay of a body from one connection to another. At most two pieces of the body are held at a time, so that neither
//! side can fill the memory. A body that stalls for too long breaks off.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Reason for which a body broke off.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum BrokenBody {
    /// Sender stalled.
    #[error("nothing more of the body came for {0:?}")]
    Silent(Duration),
    /// Receiver stalled.
    #[error("nothing more of the body was taken for {0:?}")]
    Stuck(Duration),
    #[error("the body had not come as a whole within {0:?}")]
    Endless(Duration),
    /// Sender gone, or its data malformed.
    #[error("the body broke off: {0}")]
    Source(String),
}

#[derive(Debug)]
enum Piece {
    Frame(Frame<Bytes>),
    End,
    Broken(BrokenBody),
}

/// Receiving end of a relay, as a body. Reports no length, because the headers state it.
#[derive(Debug)]
pub(super) struct Relayed(mpsc::Receiver<Piece>);

/// Handle to wait for the end of a relay.
#[derive(Debug)]
pub(super) struct RelayEnd(oneshot::Receiver<BrokenBody>);

impl RelayEnd {
    /// Waits until the relay has ended. Returns the reason if the body broke off. Returns `None` if the whole body was
    /// passed on, or if the receiving end was dropped.
    pub(super) async fn over(self) -> Option<BrokenBody> {
        self.0.await.ok()
    }
}

/// Begins to relay `source`. Neither side may stall for longer than `idle`. `held` is dropped when the body has ended
/// or broken off, or when the receiving end was dropped.
pub(super) fn relay<B, H>(source: B, idle: Duration, held: H) -> (Relayed, RelayEnd)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
    H: Send + 'static,
{
    let (to, relayed) = mpsc::channel(1);
    let (sender, watch) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(broken) = pass(source, &to, idle).await {
            // Sent first, so that the watcher gets the cause, and not the broken connection that follows from it.
            let _ = sender.send(broken.clone());
            let _ = to.try_send(Piece::Broken(broken));
        }
        drop(held);
    });
    (Relayed(relayed), RelayEnd(watch))
}

async fn pass<B>(mut source: B, to: &mpsc::Sender<Piece>, idle: Duration) -> Result<(), BrokenBody>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        let next = tokio::select! {
            // Cancel-safe: a frame that was not awaited stays in the body.
            next = timeout(idle, source.frame()) => next.map_err(|_| BrokenBody::Silent(idle))?,
            () = to.closed() => return Ok(()),
        };
        let piece = match next {
            Some(Ok(frame)) => Piece::Frame(frame),
            Some(Err(e)) => return Err(BrokenBody::Source(e.to_string())),
            None => Piece::End,
        };
        let ends = matches!(piece, Piece::End);
        // A receiving end that was dropped is no failure of the body.
        let taken = timeout(idle, to.send(piece)).await.map_err(|_| BrokenBody::Stuck(idle))?;
        if ends || taken.is_err() {
            return Ok(());
        }
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        self.0.poll_recv(context).map(|piece| match piece {
            Some(Piece::Frame(frame)) => Some(Ok(frame)),
            Some(Piece::End) => None,
            Some(Piece::Broken(broken)) => Some(Err(broken)),
            // An error, because a plain end would make the body look complete.
            None => Some(Err(BrokenBody::Source("nobody passes it on any more".to_string()))),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::{Full, StreamBody};

    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    /// Endless body whose frames are ready at once, and a receiver that gets one value per frame read.
    fn endless()
    -> (impl Body<Data = Bytes, Error = Infallible> + Send + Unpin, mpsc::UnboundedReceiver<()>)
    {
        let (read, reads) = mpsc::unbounded_channel();
        let frames = stream::repeat_with(move || {
            let _ = read.send(());
            Ok(Frame::data(Bytes::from_static(b"x")))
        });
        (StreamBody::new(frames), reads)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_arrives_and_lets_go_what_it_held() {
        let held = std::sync::Arc::new(());
        let (relayed, watch) = relay(Full::new(Bytes::from_static(b"body")), IDLE, held.clone());
        assert_eq!(relayed.collect().await.unwrap().to_bytes(), "body");
        while std::sync::Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
        assert!(watch.over().await.is_none(), "it came to its end");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_read_than_is_taken_and_who_takes_nothing_breaks_it() {
        let (source, mut reads) = endless();
        let (mut relayed, watch) = relay(source, IDLE, ());
        assert!(matches!(watch.over().await, Some(BrokenBody::Stuck(IDLE))));
        let mut read = 0;
        while reads.try_recv().is_ok() {
            read += 1;
        }
        assert_eq!(read, 2, "one that waits to be taken, one that waits to be put there");
        assert!(relayed.frame().await.unwrap().is_ok());
        assert!(relayed.frame().await.unwrap().is_err(), "it does not end as if it were whole");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_falls_silent_breaks_it_and_one_that_breaks_too() {
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let (mut relayed, watch) = relay(silent, IDLE, ());
        assert!(matches!(relayed.frame().await, Some(Err(BrokenBody::Silent(IDLE)))));
        assert!(matches!(watch.over().await, Some(BrokenBody::Silent(IDLE))));
        let broken = StreamBody::new(stream::iter([Err::<Frame<Bytes>, _>("reset")]));
        let (mut relayed, _) = relay(broken, IDLE, ());
        assert!(
            matches!(relayed.frame().await, Some(Err(BrokenBody::Source(why))) if why == "reset")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_nobody_wants_any_more_is_given_up() {
        let held = std::sync::Arc::new(());
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let (relayed, _) = relay(silent, IDLE, held.clone());
        drop(relayed);
        while std::sync::Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
