//! Limiter of the connections at one listener. Decides which connection is closed when a new one arrives at the limit.
//!
//! A connection is *quiet* until a whole request has been received, and *at work* from then until the reply has been
//! sent. Each peer has a quota of connections.
//!
//! A new connection of a peer at its quota replaces the connection of that peer that has been quiet for longest. At a
//! full listener, a new connection replaces the one that has been quiet for longest of the peer with the most
//! connections, among the peers with a quiet one. So connections that send nothing, from one address or from many, do
//! not block calls.
//!
//! A new connection is refused if all connections that it could replace are at work. At a full listener, some more are
//! then admitted for peers that have no connection yet.
//!
//! A plain value: `serve` keeps it in a mutex, and closes the connections that are replaced.

use std::collections::{BTreeMap, HashMap};

use crate::model::quota::QuotaClient;

/// Number of a connection, in order of arrival.
pub(super) type Id = u64;

/// Admission of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionAdmission {
    /// Admitted below the limit.
    Free(Id),
    /// Admitted in place of the second connection, which is no longer counted and has to be closed.
    InPlaceOf(Id, Id),
    /// Refused: all connections that could be replaced are at work.
    Full,
}

/// Connections of one peer.
#[derive(Debug, Default)]
struct Connections {
    count: usize,
    /// Quiet connections, by the time at which they became quiet.
    quiet: BTreeMap<u64, Id>,
}

/// Connections of a listener.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    most: usize,
    /// Logical clock, which orders arrivals of connections and the times at which they became quiet.
    clock: u64,
    peers: HashMap<QuotaClient, Connections>,
    /// Peer of each connection, and the time since which it is quiet.
    members: HashMap<Id, (QuotaClient, Option<u64>)>,
}

impl ConnectionLimiter {
    pub(super) fn new(most: usize) -> ConnectionLimiter {
        ConnectionLimiter { most, clock: 0, peers: HashMap::new(), members: HashMap::new() }
    }

    /// Admits a new connection, which counts at once and is quiet.
    pub(super) fn enter(&mut self, peer: QuotaClient) -> ConnectionAdmission {
        let own = self.peers.get(&peer);
        let has_none = own.is_none();
        let leaves = if own.is_some_and(|own| own.count >= peer.quota(self.most)) {
            own.and_then(oldest)
        } else if self.members.len() >= self.most {
            let with_quiet = self.peers.values().filter(|peer| !peer.quiet.is_empty());
            with_quiet.max_by_key(|peer| peer.count).and_then(oldest)
        } else {
            return ConnectionAdmission::Free(self.admit(peer));
        };
        let Some(leaves) = leaves else {
            // Some connections beyond the limit are reserved for peers that have none, so that busy peers do not lock
            // out others.
            let reserved = self.most + (self.most / 16).max(1);
            return match has_none && self.members.len() < reserved {
                true => ConnectionAdmission::Free(self.admit(peer)),
                false => ConnectionAdmission::Full,
            };
        };
        self.leave(leaves);
        ConnectionAdmission::InPlaceOf(self.admit(peer), leaves)
    }

    fn admit(&mut self, peer: QuotaClient) -> Id {
        let id = self.tick();
        let connections = self.peers.entry(peer).or_default();
        connections.count += 1;
        connections.quiet.insert(id, id);
        self.members.insert(id, (peer, Some(id)));
        id
    }

    /// Marks a connection as at work: a request has been received.
    pub(super) fn works(&mut self, id: Id) {
        self.set(id, None);
    }

    /// Marks a connection as quiet: its reply has been sent, or the rest of its request has still to arrive.
    pub(super) fn rests(&mut self, id: Id) {
        let now = self.tick();
        self.set(id, Some(now));
    }

    /// Removes a connection. Ignores an unknown one, such as one that was replaced before.
    pub(super) fn leave(&mut self, id: Id) {
        let Some((peer, quiet)) = self.members.remove(&id) else { return };
        let Some(connections) = self.peers.get_mut(&peer) else { return };
        connections.count -= 1;
        if let Some(since) = quiet {
            connections.quiet.remove(&since);
        }
        if connections.count == 0 {
            self.peers.remove(&peer);
        }
    }

    fn set(&mut self, id: Id, quiet: Option<u64>) {
        let Some((peer, before)) = self.members.get_mut(&id) else { return };
        let Some(connections) = self.peers.get_mut(peer) else { return };
        if let Some(since) = std::mem::replace(before, quiet) {
            connections.quiet.remove(&since);
        }
        if let Some(since) = quiet {
            connections.quiet.insert(since, id);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

fn oldest(connections: &Connections) -> Option<Id> {
    connections.quiet.first_key_value().map(|(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::caller::Caller;

    fn peer(number: u8) -> QuotaClient {
        QuotaClient::from(Caller::At([192, 0, 2, number].into()))
    }

    fn free(entry: ConnectionAdmission) -> Id {
        let ConnectionAdmission::Free(id) = entry else { panic!("{entry:?}") };
        id
    }

    #[test]
    fn a_peer_has_three_quarters_and_then_its_longest_quiet_connection_gives_way() {
        let mut limiter = ConnectionLimiter::new(8);
        let own: Vec<Id> = (0..6).map(|_| free(limiter.enter(peer(1)))).collect();
        limiter.works(own[0]);
        limiter.works(own[1]);
        limiter.rests(own[1]);
        let ConnectionAdmission::InPlaceOf(new, gone) = limiter.enter(peer(1)) else { panic!() };
        assert_eq!(
            (gone, limiter.members.len()),
            (own[2], 6),
            "the first is at work, the second was heard of"
        );
        let others: Vec<Id> = (0..2).map(|_| free(limiter.enter(peer(2)))).collect();
        for id in own.iter().chain(&others).chain([&new]) {
            limiter.works(*id);
        }
        assert_eq!(
            (limiter.enter(peer(1)), limiter.enter(peer(2))),
            (ConnectionAdmission::Full, ConnectionAdmission::Full)
        );
        // One connection beyond the limit is reserved for a peer that has none.
        let reserved = free(limiter.enter(peer(3)));
        limiter.works(reserved);
        assert_eq!(
            (limiter.enter(peer(3)), limiter.enter(peer(4))),
            (ConnectionAdmission::Full, ConnectionAdmission::Full)
        );
        limiter.leave(own[0]);
        limiter.leave(reserved);
        free(limiter.enter(peer(3)));
        assert_eq!(limiter.members.len(), 8);
    }

    #[test]
    fn at_a_full_listener_the_peer_with_the_most_gives_way() {
        let mut limiter = ConnectionLimiter::new(8);
        let first = free(limiter.enter(peer(2)));
        let greedy: Vec<Id> = (0..5).map(|_| free(limiter.enter(peer(1)))).collect();
        let _others = [free(limiter.enter(peer(3))), free(limiter.enter(peer(3)))];
        let ConnectionAdmission::InPlaceOf(_, gone) = limiter.enter(peer(4)) else { panic!() };
        assert_eq!(gone, greedy[0]);
        // A peer whose connections are all at work loses none, even if it has the most.
        greedy.iter().for_each(|id| limiter.works(*id));
        let ConnectionAdmission::InPlaceOf(_, gone) = limiter.enter(peer(5)) else { panic!() };
        assert_ne!(gone, first, "of those with a quiet one, it is not the one with the fewest");
    }

    #[test]
    fn the_node_has_no_quota_and_a_listener_for_one_admits_one() {
        let mut limiter = ConnectionLimiter::new(4);
        for _ in 0..4 {
            free(limiter.enter(QuotaClient::Node));
        }
        let mut one = ConnectionLimiter::new(1);
        free(one.enter(peer(1)));
        assert!(matches!(one.enter(peer(2)), ConnectionAdmission::InPlaceOf(..)));
    }

    proptest! {
        #[test]
        fn nobody_at_work_gives_way_and_the_bounds_hold(
            most in 1..12_usize,
            steps in prop::collection::vec((0..4_u8, 0..5_u8, 0..30_usize), 1..200),
        ) {
            let mut limiter = ConnectionLimiter::new(most);
            let mut there: Vec<(Id, u8, bool)> = Vec::new();
            for (what, who, which) in steps {
                let at = which.checked_rem(there.len()).unwrap_or_default();
                match (what, there.is_empty()) {
                    (1, false) => { limiter.works(there[at].0); there[at].2 = true; }
                    (2, false) => { limiter.rests(there[at].0); there[at].2 = false; }
                    (3, false) => limiter.leave(there.swap_remove(at).0),
                    _ => match limiter.enter(peer(who)) {
                        ConnectionAdmission::Free(id) => there.push((id, who, false)),
                        ConnectionAdmission::InPlaceOf(id, gone) => {
                            let at = there.iter().position(|(id, ..)| *id == gone).unwrap();
                            prop_assert!(!there[at].2, "it was at work");
                            there.swap_remove(at);
                            there.push((id, who, false));
                        }
                        ConnectionAdmission::Full => {
                            let own = there.iter().filter(|(_, of, _)| *of == who).count();
                            prop_assert!(own >= peer(who).quota(most) || there.len() >= most);
                        }
                    },
                }
                prop_assert_eq!(limiter.members.len(), there.len());
                prop_assert!(there.len() <= most + 1, "most is below 32, so one is reserved");
                for who in 0..5 {
                    let own = there.iter().filter(|(_, of, _)| *of == who).count();
                    prop_assert!(own <= peer(who).quota(most));
                }
            }
            there.iter().for_each(|(id, ..)| limiter.leave(*id));
            prop_assert!(limiter.peers.is_empty() && limiter.members.is_empty());
        }
    }
}
