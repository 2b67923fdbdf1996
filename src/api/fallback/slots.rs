//! Slots for forwarded requests. Each client has a quota, so that a client that holds its slots for long leaves room
//! for others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::quota::QuotaClient;

#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: Mutex<HashMap<QuotaClient, usize>>,
}

/// Slot of one request; freed on drop.
#[derive(Debug)]
pub(super) struct FallbackSlot {
    places: Arc<Places>,
    peer: QuotaClient,
}

impl Places {
    pub(super) fn new(most: usize) -> Places {
        Places { most, taken: Mutex::default() }
    }

    /// Takes a slot for `peer`. `None` if all slots are taken, or if `peer` has used up its quota.
    pub(super) fn take(self: &Arc<Places>, peer: QuotaClient) -> Option<FallbackSlot> {
        let mut taken = self.lock();
        let own = taken.get(&peer).copied().unwrap_or_default();
        let full = taken.values().sum::<usize>() >= self.most;
        if full || own >= peer.quota(self.most) {
            return None;
        }
        taken.insert(peer, own + 1);
        drop(taken);
        Some(FallbackSlot { places: self.clone(), peer })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QuotaClient, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FallbackSlot {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match taken.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::caller::Caller;

    #[test]
    fn one_peer_leaves_room_for_others_and_a_place_is_free_again() {
        let places = Arc::new(Places::new(4));
        let peer = |text: &str| QuotaClient::from(text.parse::<Caller>().unwrap());
        let own: Vec<FallbackSlot> =
            (0..3).map(|_| places.take(peer("192.0.2.1")).unwrap()).collect();
        assert!(places.take(peer("192.0.2.1")).is_none());
        let other = places.take(peer("192.0.2.2")).unwrap();
        assert!(places.take(peer("192.0.2.3")).is_none() && places.take(peer("local")).is_none());
        drop((own, other));
        assert!(places.lock().is_empty());
        let all: Vec<Option<FallbackSlot>> = (0..5).map(|_| places.take(peer("local"))).collect();
        assert_eq!(all.iter().flatten().count(), 4);
    }
}
