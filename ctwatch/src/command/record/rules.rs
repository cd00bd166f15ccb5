//! Rule sets and settings of the netns this runs in and of those that lost packets, read beside the watch: at the start,
//! when a trigger fires, and when something changed. What is cheap is looked at often, and rules are listed seldom.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::advise::rule_set::RuleSet;
use crate::firewall::{self, Budget, Dump};
use crate::kernel::nf_tables;
use crate::kernel::roots::Roots;
use crate::model::{NetnsId, WallMono};
use crate::netns::{self, Netns};
use crate::record::rows::{NetnsSetting, SnapshotReason};
use crate::record::rules::{MAX_SIZE, Packed, StoredRules, digest};
use crate::record::sysctls::{Sysctls, read_netns};

/// How often it is asked whether nftables' rules changed, which costs one message.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// The least time between two listings, though rules change all the time.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// The same where nothing tells whether rules changed: x_tables has no generation.
const LIST_UNASKED: Duration = Duration::from_secs(600);
/// The most time between two: addresses of the host belong to what is judged, and no generation tells of them.
const LIST_ANYWAY: Duration = Duration::from_secs(3600);
/// A listing is not repeated before so many times what it took: it may cost one percent of a core.
const REST: u32 = 100;
/// The same when a trigger fired.
const REST_AT_TRIGGER: u32 = 10;
/// Namespaces looked after: the own one, and the first that lost packets.
const WATCHED: usize = 8;

/// Looks after them, one at a time.
pub(super) struct RuleWatch {
    roots: Roots,
    own: NetnsId,
    read: fn(&RulesRequest) -> RulesRead,
    watched: BTreeMap<NetnsId, Watched>,
    looking: bool,
    sender: Sender<(NetnsId, RulesRead)>,
    receiver: Receiver<(NetnsId, RulesRead)>,
}

/// What is known of one netns.
struct Watched {
    due: Instant,
    why: SnapshotReason,
    last: Option<Listed>,
    settings: Sysctls,
    way: Option<Netns>,
}

/// The last listing.
#[derive(Clone)]
struct Listed {
    generation: Option<u32>,
    digest: [u8; 32],
    ended: Instant,
    took: Duration,
}

/// What to look at.
struct RulesRequest {
    roots: Roots,
    netns: NetnsId,
    is_own: bool,
    way: Option<Netns>,
    last: Option<Listed>,
    at_trigger: bool,
}

/// What was seen.
struct RulesRead {
    at: WallMono,
    way: Option<Netns>,
    settings: BTreeMap<String, String>,
    rules: Result<Option<(Listed, Option<Packed>)>>,
}

/// What is new.
pub(super) struct News {
    pub rules: Result<Option<StoredRules>>,
    pub settings: Vec<NetnsSetting>,
}

impl RuleWatch {
    pub fn new(roots: &Roots, own: NetnsId) -> Self {
        let (sender, receiver) = channel();
        let mut watch = Self {
            roots: roots.clone(),
            own,
            read,
            watched: BTreeMap::new(),
            looking: false,
            sender,
            receiver,
        };
        watch.lost(own);
        watch
    }

    /// Packets were lost in this netns: from now on it is looked after.
    pub fn lost(&mut self, netns: NetnsId) {
        if self.watched.len() < WATCHED || netns == self.own {
            let roots = &self.roots;
            self.watched.entry(netns).or_insert_with(|| Watched::new(roots));
        }
    }

    /// A trigger fired for this netns: its rules are wanted as they are now.
    pub fn trigger(&mut self, netns: NetnsId, now: Instant) {
        // The one of an incident takes the place of one that only lost packets.
        if self.watched.len() >= WATCHED && !self.watched.contains_key(&netns) {
            let other = self.watched.keys().rev().find(|other| **other != self.own).copied();
            other.map(|other| self.watched.remove(&other));
        }
        self.lost(netns);
        if let Some(watched) = self.watched.get_mut(&netns) {
            watched.due = now;
            if watched.last.is_some() {
                watched.why = SnapshotReason::Trigger;
            }
        }
    }

    /// A new file begins: it gets everything once more.
    pub fn forget(&mut self) {
        for watched in self.watched.values_mut() {
            *watched = Watched { way: watched.way.take(), ..Watched::new(&self.roots) };
        }
    }

    /// What was seen since the last call; begins to look at the one that is due longest.
    pub fn poll(&mut self, now: Instant) -> Option<News> {
        let seen = self.receiver.try_recv().ok();
        let news = seen.and_then(|(netns, seen)| {
            self.looking = false;
            self.take(netns, seen, now)
        });
        if !self.looking {
            let due = self.watched.iter().filter(|(_, watched)| watched.due <= now);
            if let Some(netns) = due.min_by_key(|(_, watched)| watched.due).map(|(netns, _)| *netns) {
                let begun = self.begin(netns);
                if let (Err(error), Some(watched)) = (begun, self.watched.get_mut(&netns)) {
                    watched.due = now + ASK_EVERY;
                    return Some(news.unwrap_or_else(|| News { rules: Err(error), settings: Vec::new() }));
                }
            }
        }
        news
    }

    fn take(&mut self, netns: NetnsId, seen: RulesRead, now: Instant) -> Option<News> {
        let RulesRead { at, way, settings, rules } = seen;
        if way.is_none() && netns != self.own {
            // It is gone.
            self.watched.remove(&netns);
            return None;
        }
        let watched = self.watched.get_mut(&netns)?;
        watched.way = way;
        watched.due = now + ASK_EVERY;
        let settings = match netns == self.own {
            true => Vec::new(),
            false => watched.settings.compare(settings, at),
        };
        let settings = settings.into_iter().map(|setting| NetnsSetting { netns, setting }).collect();
        let rules = rules.map(|listed| {
            let (last, packed) = listed?;
            watched.last = Some(last);
            let reason = std::mem::replace(&mut watched.why, SnapshotReason::Changed);
            packed.map(|packed| StoredRules { netns, at, reason, rules: Some(packed) })
        });
        if rules.is_err() {
            // What failed may fail again: not twice a minute.
            watched.due = now + LIST_UNASKED;
        }
        Some(News { rules, settings })
    }

    fn begin(&mut self, netns: NetnsId) -> Result<()> {
        let Some(watched) = self.watched.get(&netns) else { return Ok(()) };
        let request = RulesRequest {
            roots: self.roots.clone(),
            netns,
            is_own: netns == self.own,
            way: watched.way.clone(),
            last: watched.last.clone(),
            at_trigger: watched.why == SnapshotReason::Trigger,
        };
        let (sender, read) = (self.sender.clone(), self.read);
        std::thread::Builder::new()
            .name("rules".to_owned())
            .stack_size(4 << 20)
            .spawn(move || drop(sender.send((netns, read(&request)))))
            .context("starting a thread that reads the firewall's rules, tried again later")?;
        self.looking = true;
        Ok(())
    }
}

impl Watched {
    fn new(roots: &Roots) -> Self {
        Self {
            due: Instant::now(),
            why: SnapshotReason::Start,
            last: None,
            settings: Sysctls::new(roots),
            way: None,
        }
    }
}

/// Goes there and looks.
fn read(request: &RulesRequest) -> RulesRead {
    let at = WallMono::now();
    let nothing = |way, error| RulesRead { at, way, settings: BTreeMap::new(), rules: Err(error) };
    if request.is_own {
        return RulesRead { at, way: None, settings: BTreeMap::new(), rules: packed(request, list(request)) };
    }
    let Some(way) = request.way.clone().filter(netns::leads_there).or_else(|| find(request.netns)) else {
        return nothing(None, anyhow::anyhow!("the netns is gone"));
    };
    let inside = netns::run_inside(&way, || Ok((read_netns(&request.roots), list(request))));
    match inside {
        // Packed here: a thread that visits a netns has little stack.
        Ok((settings, listed)) => RulesRead { at, way: Some(way), settings, rules: packed(request, listed) },
        Err(error) => nothing(Some(way), error),
    }
}

fn find(netns: NetnsId) -> Option<Netns> {
    let found = netns::discover().ok()?.into_values();
    found.into_iter().find(|found| found.id.inode() == netns.inode())
}

/// Rules as they were listed.
struct Listing {
    dump: Dump,
    generation: Option<u32>,
    began: Instant,
}

/// Lists the rules of the netns this thread is in, if they may have changed and it isn't too soon.
fn list(request: &RulesRequest) -> Option<Listing> {
    let generation = nf_tables::generation(&request.roots).ok().flatten();
    let began = Instant::now();
    is_wanted(request, generation, has_legacy_rules(&request.roots), began).then(|| Listing {
        dump: firewall::list(
            &request.roots,
            if request.is_own { Budget::whole() } else { Budget::of_others() },
        ),
        generation,
        began,
    })
}

/// Packs them if they changed.
fn packed(request: &RulesRequest, listing: Option<Listing>) -> Result<Option<(Listed, Option<Packed>)>> {
    let Some(Listing { dump, generation, began }) = listing else { return Ok(None) };
    let rules = RuleSet { dump: dump.without_counts() };
    let (digest, size) = digest(&rules)?;
    let is_new = request.last.as_ref().is_none_or(|last| last.digest != digest);
    let packed = match (is_new, size > MAX_SIZE) {
        (false, _) => None,
        (true, false) => Some(Packed::new(&rules)?),
        (true, true) => {
            // Their place in time stays: the ones before them are not in force any more.
            let note = firewall::Note {
                tool: "ctwatch".to_owned(),
                text: format!("the rules take {size} bytes, more than a recording keeps: they are unknown"),
            };
            Some(Packed::new(&RuleSet { dump: Dump { unread: vec![note], ..Dump::default() } })?)
        }
    };
    let listed = Listed { generation, digest, ended: Instant::now(), took: began.elapsed() };
    Ok(Some((listed, packed)))
}

/// Whether the rules are to be listed.
fn is_wanted(request: &RulesRequest, generation: Option<u32>, legacy: bool, now: Instant) -> bool {
    let Some(last) = &request.last else { return true };
    let is_told = generation.is_some() && !legacy;
    if is_told && generation == last.generation && now < last.ended + LIST_ANYWAY {
        return false;
    }
    let wait = match (request.at_trigger, is_told || generation != last.generation) {
        (true, _) => last.took * REST_AT_TRIGGER,
        (false, true) => LIST_EVERY.max(last.took * REST),
        (false, false) => LIST_UNASKED.max(last.took * REST),
    };
    now >= last.ended + wait
}

/// Whether x_tables holds rules in this netns: it has no generation.
fn has_legacy_rules(roots: &Roots) -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|names| {
        std::fs::read_to_string(roots.proc("thread-self/net").join(names))
            .is_ok_and(|text| !text.trim().is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(last: Option<Listed>, at_trigger: bool) -> RulesRequest {
        let netns = NetnsId::from_packed(1);
        RulesRequest { roots: Roots::default(), netns, is_own: true, way: None, last, at_trigger }
    }

    fn listed(generation: Option<u32>, ago: Duration, took: Duration) -> Option<Listed> {
        let ended = Instant::now().checked_sub(ago).unwrap();
        Some(Listed { generation, digest: [0; 32], ended, took })
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rules_are_listed_when_they_changed_and_not_too_often() {
        let wanted = |last, at_trigger, generation, legacy| {
            is_wanted(&request(last, at_trigger), generation, legacy, Instant::now())
        };
        assert!(wanted(None, false, Some(1), false), "the first time");
        let quick = Duration::from_millis(10);
        let long = SECOND * 3_500;
        assert!(!wanted(listed(Some(1), long, quick), false, Some(1), false), "nothing changed");
        assert!(!wanted(listed(Some(1), long, quick), true, Some(1), false), "nor when a trigger fires");
        assert!(wanted(listed(Some(1), SECOND * 3_601, quick), false, Some(1), false), "addresses may have");
        assert!(wanted(listed(Some(1), SECOND * 61, quick), false, Some(2), false));
        assert!(!wanted(listed(Some(1), SECOND * 30, quick), false, Some(2), false), "too soon");
        assert!(wanted(listed(Some(1), SECOND * 30, quick), true, Some(2), false), "but for a trigger");
        // 3 s for a huge rule set: once in 300 s, and 30 s at a trigger.
        assert!(!wanted(listed(Some(1), SECOND * 299, SECOND * 3), false, Some(2), false));
        assert!(wanted(listed(Some(1), SECOND * 301, SECOND * 3), false, Some(2), false));
        assert!(!wanted(listed(Some(1), SECOND * 29, SECOND * 3), true, Some(2), false));
        // x_tables tells nothing.
        assert!(!wanted(listed(Some(1), SECOND * 500, quick), false, Some(1), true));
        assert!(wanted(listed(Some(1), SECOND * 601, quick), false, Some(1), true));
        assert!(
            wanted(listed(None, SECOND * 601, quick), false, None, false),
            "nor a kernel without the module"
        );
    }

    #[test]
    fn the_netns_that_lost_packets_is_kept_with_the_reason_and_a_gone_one_forgotten() {
        let (own, other) = (NetnsId::from_packed(1), NetnsId::from_packed(2));
        let mut watch = RuleWatch::new(&Roots::default(), own);
        watch.read = |request| {
            let at = WallMono::now();
            let listed = Listed {
                generation: Some(1),
                digest: [0; 32],
                ended: Instant::now(),
                took: Duration::from_millis(1),
            };
            let packed =
                (request.last.is_none() || request.at_trigger).then(|| Packed::new(&"rules").unwrap());
            let way = Netns { id: request.netns, path: "/nowhere".into(), name: None, container: None };
            let is_gone = request.at_trigger && !request.is_own;
            let settings = [("net.netfilter.nf_conntrack_max".to_owned(), "7".to_owned())].into();
            RulesRead {
                at,
                way: (!is_gone && !request.is_own).then_some(way),
                settings,
                rules: Ok(Some((listed, packed))),
            }
        };
        watch.lost(other);
        let next = |watch: &mut RuleWatch, now| {
            let until = Instant::now() + SECOND * 20;
            loop {
                let was_looking = watch.looking;
                let news = watch.poll(now);
                if news.is_some() || (was_looking && !watch.looking) || Instant::now() > until {
                    return news;
                }
                std::thread::yield_now();
            }
        };
        let now = Instant::now() + SECOND;
        let mut found = BTreeMap::new();
        for _ in 0..2 {
            let News { rules, settings } = next(&mut watch, now).unwrap();
            let rules = rules.unwrap().unwrap();
            found.insert(rules.netns, (rules.reason, settings.len()));
        }
        // The own one's are with those of the host.
        assert_eq!(found, [(own, (SnapshotReason::Start, 0)), (other, (SnapshotReason::Start, 1))].into());
        assert!(watch.poll(now).is_none() && !watch.looking, "neither is due");
        watch.trigger(own, now);
        let rules = next(&mut watch, now).unwrap().rules.unwrap().unwrap();
        assert_eq!((rules.netns, rules.reason), (own, SnapshotReason::Trigger));
        watch.trigger(other, now);
        assert!(next(&mut watch, now).is_none());
        assert_eq!(watch.watched.keys().collect::<Vec<_>>(), [&own]);
        watch.forget();
        let rules = next(&mut watch, now).unwrap().rules.unwrap().unwrap();
        assert_eq!(rules.reason, SnapshotReason::Start, "for a new file");
    }
}
