//! Proof by difference: random rule sets on a host with a LAN, an outside and a net beside it, flows of all kinds before and
//! after what the judge advises. What is advised may break no flow, open none, leave no entry of what it exempts, and its
//! undo has to bring the rules back. What is refused is tried as well, to see how much of it was harmless.
//!     ctwatch-tests rules --count 200 --seed 7      # as root, in netns of its own; prints the seed if none is given
//!     ctwatch-tests rules --count 200 --seed 7 --harmless   # and which refusals were harmless
//!     ctwatch-tests rules --seed 7 --only 42        # one set again, with each counterexample made as small as it gets

mod grammar;
mod ground;
mod random;
mod tally;
mod trial;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use random::Random;
use tally::Tally;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many rule sets.
    pub count: u64,
    /// From which they come.
    pub seed: u64,
    /// This one alone.
    pub only: Option<u64>,
    /// Tell which refusals were harmless.
    pub harmless: bool,
    /// How many places at once.
    pub jobs: usize,
}

/// Runs them and prints each counterexample and the figures; true when there was no counterexample.
pub fn run(options: &Options) -> Result<bool> {
    let began = Instant::now();
    let Options { count, seed, only, harmless, jobs } = *options;
    println!("seed {seed}, {count} rule sets");
    let range = only.map_or(0..count, |index| index..index + 1);
    let (next, tally) = (AtomicU64::new(range.start), Mutex::new(Tally::default()));
    thread::scope(|scope| {
        let work = || -> Result<()> {
            let mut place = ground::build()?;
            loop {
                let index = next.fetch_add(1, Relaxed);
                if index >= range.end {
                    return Ok(());
                }
                let mut random = Random::new(seed, index);
                let asked = ground::Asked::random(&mut random);
                let patience = trial::patience(&place, &asked)?;
                let Some((set, refusals)) = trial::load(&place, &mut random, &asked)? else { continue };
                let trial = trial::Trial::new(&place, &asked, &set, patience)?;
                let mut found = trial.all()?;
                if only.is_none() && found.iter().any(trial::Answer::is_counterexample) {
                    // Flows of one round may meet what is left of another's; what a rule set does it does in a new place, too.
                    place = ground::build()?;
                    let mut random = Random::new(seed, index);
                    let asked = ground::Asked::random(&mut random);
                    let Some((set, refusals)) = trial::load(&place, &mut random, &asked)? else { continue };
                    let mut again = trial::Trial::new(&place, &asked, &set, trial::LONG)?.all()?;
                    // Rules that limit rates let now these flows pass and now those.
                    again.iter_mut().zip(&found).for_each(|(again, first)| again.keep_what_repeats(first));
                    let first = found.iter().filter(|answer| answer.is_counterexample()).count();
                    let second = again.iter().filter(|answer| answer.is_counterexample()).count();
                    println!("--only {index}: {first} counterexamples, tried again {second}");
                    found
                        .iter()
                        .filter(|answer| answer.is_counterexample())
                        .for_each(|answer| println!("first: {answer}"));
                    found = again;
                    report(seed, index, harmless, &found);
                    tally.lock().expect("no thread panics with the lock").add(refusals, &found);
                    place = ground::build()?;
                    continue;
                }
                if only.is_some() {
                    println!("asked about {}/{}, other port {}\n{set}", asked.port, asked.proto, asked.other);
                    trial.before().for_each(|line| println!("before: {line}"));
                    for answer in &found {
                        println!("{answer}");
                    }
                    trial::shrink(&place, &asked, &mut found)?;
                }
                report(seed, index, harmless, &found);
                tally.lock().expect("no thread panics with the lock").add(refusals, &found);
                if set.is_legacy() {
                    // Its tables stay in the netns, and the next set would not be alone.
                    place = ground::build()?;
                }
            }
        };
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })?;
    let tally = tally.into_inner().expect("no thread panics with the lock");
    print!("{tally}");
    println!(
        "seed {seed}: {} counterexamples in {:.1} s",
        tally.counterexamples(),
        began.elapsed().as_secs_f64()
    );
    Ok(tally.counterexamples() == 0)
}

fn report(seed: u64, index: u64, harmless: bool, found: &[trial::Answer]) {
    for answer in found.iter().filter(|answer| answer.is_counterexample()) {
        // In one line what it is about: that one is repeated at the end of a whole run.
        let harms: Vec<_> = answer.harms.iter().map(ToString::to_string).collect();
        println!("COUNTEREXAMPLE --seed {seed} --only {index}: {}: {}", answer.piece, harms.join("; "));
        println!("{answer}\n{}", answer.rules());
    }
    for answer in found.iter().filter(|answer| harmless && answer.is_refused_without_need()) {
        println!("HARMLESS --seed {seed} --only {index}: {answer}");
    }
}
