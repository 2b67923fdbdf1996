//! Health of targets beyond their answers to requests: `deep` verifies by I/O that a target's data path works.

pub mod deep;
