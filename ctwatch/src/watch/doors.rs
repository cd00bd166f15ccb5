//! The doors of modules that are loaded while we watch.

use super::Watch;
use crate::kernel::release::release_number;
use crate::kernel::symbols::Symbols;
use crate::probe::doors;

impl Watch {
    /// Follows modules that bring a door with them: what they refused before they were noticed has no tuple.
    pub fn follow_doors(&mut self) {
        let loaded = doors::loaded(&self.config.roots);
        if loaded == self.doors {
            return;
        }
        let Some(probe) = &self.probe else { return };
        // It could be read when the watch began. If it can't be now, the next tick tries again.
        if let Ok(symbols) = Symbols::read(&self.config.roots.proc("kallsyms")) {
            probe.shared.set_doors(&doors::find(&symbols, release_number(&self.config.roots.release())));
            self.doors = loaded;
        }
    }
}
