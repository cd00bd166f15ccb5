//! Recordings: what was written is read, and whatever happens to a file is said.
//! Synthetic watches write; no kernel is needed.

mod command;
mod crash;
mod damage;
mod export;
mod full;
mod incidents;
mod replay;
mod retention;
mod rotate;
mod roundtrip;
mod stuck;
mod synthetic;
