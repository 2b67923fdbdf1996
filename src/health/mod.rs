//! Health of targets beyond their answers: `deep` proves by I/O what an answer cannot.

pub mod deep;
