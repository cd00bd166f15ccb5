//! How much a run keeps of the settings of other netns: whose netns it is changes them as often as he likes, and makes as many
//! netns. From where no more is kept they count as unknown.

use std::collections::{HashMap, HashSet};

use super::limits;
use super::rows::NetnsSetting;
use crate::foreign::Foreign;
use crate::model::NetnsId;

/// Of all of them, bytes, which a reader holds at once.
const ALL: usize = 8 << 20;
/// Of one of them.
const ONE: usize = 256 << 10;
/// What a row takes beside its texts.
const ROW: usize = 128;

/// What was kept so far.
#[derive(Debug, Default)]
pub(super) struct KeptSettings {
    all: usize,
    by_netns: HashMap<NetnsId, usize>,
    unknown: HashSet<(NetnsId, Foreign)>,
    is_cut: bool,
}

impl KeptSettings {
    /// The same, or that it is unknown from then on, or nothing.
    pub fn keep(&mut self, mut stored: NetnsSetting) -> Option<NetnsSetting> {
        let setting = &mut stored.setting;
        let size = |text: &Option<Foreign>| text.as_ref().map_or(0, Foreign::size);
        let longest = [Some(setting.name.size()), Some(size(&setting.value)), Some(size(&setting.before))];
        let is_long = longest.into_iter().flatten().any(|size| size > limits::VALUE);
        let takes = ROW + setting.name.size() + size(&setting.value) + size(&setting.before);
        let of_this = self.by_netns.get(&stored.netns).copied().unwrap_or(0);
        if !is_long && self.all + takes <= ALL && of_this + takes <= ONE {
            self.all += takes;
            *self.by_netns.entry(stored.netns).or_default() += takes;
            return Some(stored);
        }
        self.is_cut = true;
        // What stands in the file holds no more. Nothing does of one that was not seen before, and what is unknown stays so.
        let was_kept = setting.before.is_some() && setting.name.size() <= limits::VALUE;
        if !was_kept || !self.unknown.insert((stored.netns, setting.name.clone())) {
            return None;
        }
        (setting.value, setting.before) = (None, None);
        Some(stored)
    }

    /// The file holds nothing more of this netns.
    pub fn forget(&mut self, netns: NetnsId) {
        self.all -= self.by_netns.remove(&netns).unwrap_or(0);
        self.unknown.retain(|(of, _)| *of != netns);
    }

    /// Whether something was left out.
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Setting;
    use super::*;
    use crate::model::WallMono;

    fn setting(netns: u32, name: &str, value: &str, before: Option<&str>) -> NetnsSetting {
        let setting = Setting {
            at: WallMono::now(),
            name: name.into(),
            value: Some(value.into()),
            before: before.map(Foreign::from),
        };
        NetnsSetting { netns: NetnsId::from_packed(netns), setting }
    }

    #[test]
    fn whoever_changes_settings_without_end_makes_his_own_unknown_and_nobody_else_s() {
        let mut kept = KeptSettings::default();
        assert!(kept.keep(setting(2, "a", "1", None)).is_some());
        let long = "1,".repeat(2000);
        let mut rows = Vec::new();
        for _ in 0..10_000 {
            rows.extend(kept.keep(setting(1, "a", &long, Some("2"))));
        }
        assert!(kept.is_cut() && rows.len() * long.len() <= ONE + long.len(), "{}", rows.len());
        let last = rows.pop().unwrap().setting;
        assert_eq!((last.value, last.before), (None, None), "from here on it is unknown");
        assert!(rows.iter().all(|row| row.setting.value.is_some()));
        assert!(kept.keep(setting(2, "a", "2", Some("1"))).is_some(), "another netns has room of its own");
    }

    #[test]
    fn a_storm_of_netns_has_an_end_and_a_long_text_is_not_kept() {
        let mut kept = KeptSettings::default();
        let rows = (0..200_000).filter_map(|netns| kept.keep(setting(netns, "a", "1", None))).count();
        assert!((10_000..ALL / ROW).contains(&rows), "{rows}");
        // Those that retention drops make room for others.
        assert_eq!(kept.keep(setting(300_000, "a", "1", None)), None);
        (0..100).for_each(|netns| kept.forget(NetnsId::from_packed(netns)));
        let rows = (300_000..400_000).filter_map(|netns| kept.keep(setting(netns, "a", "1", None))).count();
        assert!((100..110).contains(&rows), "{rows}");
        kept.forget(NetnsId::from_packed(7));
        let mut kept = KeptSettings::default();
        assert_eq!(kept.keep(setting(1, "a", &"1".repeat(limits::VALUE + 1), None)), None);
        assert!(kept.is_cut());
    }
}
