//! What people and scripts see, pinned: help texts, the text view, the JSON lines and their schemas.
//! One binary for all of it, since each shows the same fixed reports.

mod advice;
mod anonymous;
mod census;
mod fixtures;
mod goldens;
mod hostile;
mod postmortem;
mod schema;
