//! Files that somebody made to turn ctwatch against its host: in the way of what it writes, and as recordings it reads.
//! By the command line, with what it took.

mod figures;
mod limits;
mod made;
mod numbers;
mod planted;
mod recordings;
mod signals;
#[path = "../record/synthetic.rs"]
mod synthetic;
