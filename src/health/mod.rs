//! Health of targets beyond their answers: `deep` verifies by I/O what an answer cannot.

pub mod deep;
