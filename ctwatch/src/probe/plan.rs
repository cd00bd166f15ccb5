//! Which programs go where on this kernel, and which switches they get: the ladder from best to worst.
//! Pure: it looks at symbols and options only, and loads nothing.

use ctwatch_common::config::Config;

use crate::kernel::symbols::Symbols;
use crate::model::Backend;

/// What kind of hook a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// At a function's entry.
    Kprobe,
    /// At a function's return.
    Kretprobe,
    /// A tracepoint of this category, through perf.
    Tracepoint(&'static str),
    /// A raw tracepoint.
    RawTracepoint,
}

impl HookKind {
    /// The spelling in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
            Self::Tracepoint(_) => "tracepoint",
            Self::RawTracepoint => "raw_tracepoint",
        }
    }
}

/// One program and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The program's name in the object.
    pub program: &'static str,
    /// The kernel function, or the tracepoint.
    pub function: String,
    /// How it is attached.
    pub kind: HookKind,
}

/// What the user wants from the kernel side.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOptions {
    /// kprobes may be used (else raw tracepoints alone).
    pub kprobes: bool,
    /// Count inserts and deletes.
    pub flows: bool,
    /// Send inserts as events.
    pub insert_events: bool,
    /// Send losses as events: someone needs their tuples.
    pub loss_events: bool,
    /// Single events are shown, so they carry time, fill and device.
    pub event_details: bool,
    /// Find out whose packets they were.
    pub owners: bool,
    /// Count packets that pass untracked: a pair of probes on every packet.
    pub invalid: bool,
    /// See a full table by the init_conntrack pair rather than where the packet is freed.
    pub trace_init_conntrack: bool,
    /// How the kernel runs raw tracepoint programs.
    pub raw_tracepoints: RawTpReentrancy,
}

impl ProbeOptions {
    /// All that can be asked for, but for the other way to see a full table.
    #[must_use]
    pub const fn everything(raw_tracepoints: RawTpReentrancy) -> Self {
        Self {
            kprobes: true,
            flows: true,
            insert_events: true,
            loss_events: true,
            event_details: true,
            owners: true,
            invalid: true,
            trace_init_conntrack: false,
            raw_tracepoints,
        }
    }

    /// What the programs of a backend do unasked: count losses. `None` for the backend without programs.
    #[must_use]
    pub const fn for_backend(backend: Backend, raw_tracepoints: RawTpReentrancy) -> Option<Self> {
        let kprobes = match backend {
            Backend::Kprobe => true,
            Backend::Tracepoint => false,
            Backend::Counters => return None,
        };
        Some(Self {
            kprobes,
            flows: false,
            insert_events: false,
            loss_events: false,
            event_details: false,
            owners: false,
            invalid: false,
            trace_init_conntrack: false,
            raw_tracepoints,
        })
    }
}

/// How a kernel runs raw tracepoint programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawTpReentrancy {
    /// One may interrupt itself, and both runs are whole.
    Nested,
    /// One that would interrupt itself is skipped (bpf_prog.active, 5.16 and later: __bpf_trace_run,
    /// kernel/trace/bpf_trace.c).
    Skipped,
    /// The same, and they can be preempted by another task's (7.0 and later).
    Preempted {
        /// The tracepoint can be used through perf too, where it is not preempted.
        perf: bool,
    },
}

/// A hook that ctwatch does without here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingHook {
    /// The kernel function.
    pub function: String,
    /// How it would have been hooked.
    pub kind: HookKind,
    /// What isn't seen without it.
    pub costs: String,
    /// Why it is missing.
    pub reason: String,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to attach, in order.
    pub attachments: Vec<Attachment>,
    /// What can't be attached, and what that costs.
    pub missing: Vec<MissingHook>,
    /// What can't be seen on this kernel, in words.
    pub notes: Vec<String>,
}

/// Decides, and sets the switches in `config` to match. `Err` says which symbol is missing for any watch at all.
pub fn plan(symbols: &Symbols, options: ProbeOptions, config: &mut Config) -> Result<Plan, String> {
    let mut plan = Plan { attachments: Vec::new(), missing: Vec::new(), notes: Vec::new() };
    config.event_details = u32::from(options.event_details);
    config.loss_events = u32::from(options.loss_events);
    config.owners = u32::from(options.owners);
    let freed_there = symbols.get("nf_hook_slow").is_some();
    if freed_there {
        let nested = options.raw_tracepoints;
        config.preempts = u32::from(matches!(nested, RawTpReentrancy::Preempted { .. }));
        match nested {
            RawTpReentrancy::Preempted { perf: true } => {
                plan.add("kfree_skb_held", "kfree_skb", HookKind::Tracepoint("skb"));
            }
            RawTpReentrancy::Preempted { perf: false } => {
                plan.add("kfree_skb", "kfree_skb", HookKind::RawTracepoint);
                plan.notes.push(
                    "this kernel preempts raw tracepoint programs, so some losses of a storm will have no tuple; \
                     with `mount -t tracefs tracefs /sys/kernel/tracing` they have"
                        .to_owned(),
                );
            }
            RawTpReentrancy::Nested | RawTpReentrancy::Skipped => {
                plan.add("kfree_skb", "kfree_skb", HookKind::RawTracepoint);
            }
        }
        if nested != RawTpReentrancy::Nested {
            plan.add("kfree_skb_twin", "kfree_skb", HookKind::RawTracepoint);
        }
    } else {
        plan.miss(symbols, "nf_hook_slow", HookKind::RawTracepoint, "only losses of new flows are seen");
    }
    let pair = if options.kprobes && (options.trace_init_conntrack || !freed_there) {
        pair_function(symbols)
    } else {
        None
    };
    config.by_kfree_skb = u32::from(freed_there && pair.is_none());
    match (&pair, freed_there) {
        (Some(function), _) => {
            config.pair_on_alloc = u32::from(function.starts_with("__nf_conntrack_alloc"));
            plan.add("init_conntrack", function, HookKind::Kprobe);
            plan.add("init_conntrack_return", function, HookKind::Kretprobe);
        }
        (None, true) if options.trace_init_conntrack => {
            plan.miss(
                symbols,
                "init_conntrack",
                HookKind::Kprobe,
                "a full table is seen where the packet is freed",
            );
        }
        (None, true) => {}
        (None, false) => {
            return Err(
                "nf_hook_slow, init_conntrack and __nf_conntrack_alloc are all missing from kallsyms"
                    .to_owned(),
            );
        }
    }
    if !options.kprobes {
        if options.invalid {
            plan.notes.push("packets that pass untracked are not seen without kprobes".to_owned());
        }
        return Ok(plan);
    }
    if let Some(function) = symbols.function("early_drop") {
        config.early_drop_probed = 1;
        plan.add("early_drop_return", &function.name, HookKind::Kretprobe);
    } else {
        plan.miss(symbols, "early_drop", HookKind::Kretprobe, "evictions are not counted");
    }
    plan_deletes(symbols, options, config, &mut plan);
    plan.pair(symbols, "gc_worker", ["gc_worker", "gc_worker_return"], "evictions by gc are not seen");
    if let Some(function) = symbols.function("nf_ct_expect_related_report") {
        plan.add("expect_related_return", &function.name, HookKind::Kretprobe);
    } else {
        let costs = "packets that helpers drop for want of expectations are taken for a firewall's";
        plan.miss(symbols, "nf_ct_expect_related_report", HookKind::Kretprobe, costs);
    }
    if options.flows {
        plan_inserts(symbols, options, config, &mut plan);
    }
    if let Some(function) = symbols.function("nf_conntrack_pernet_exit") {
        plan.add("nf_conntrack_pernet_exit", &function.name, HookKind::Kprobe);
        config.exit_probed = 1;
    } else {
        let costs = "what a netns counted just before it went is not seen";
        plan.miss(symbols, "nf_conntrack_pernet_exit", HookKind::Kprobe, costs);
    }
    if options.invalid {
        let programs = ["nf_conntrack_in", "nf_conntrack_in_return"];
        plan.pair(symbols, "nf_conntrack_in", programs, "packets that pass untracked are not seen");
    }
    Ok(plan)
}

/// New flows are counted where their first packet is confirmed; few fail there, and few come another way.
fn plan_inserts(symbols: &Symbols, options: ProbeOptions, config: &mut Config, plan: &mut Plan) {
    let Some(function) = symbols.function("__nf_conntrack_confirm") else {
        plan.miss(symbols, "__nf_conntrack_confirm", HookKind::Kprobe, "new flows are not counted");
        return;
    };
    plan.add("nf_conntrack_confirm", &function.name, HookKind::Kprobe);
    config.flows = 1;
    config.insert_events = u32::from(options.insert_events);
    let programs = ["nf_ct_resolve_clash", "nf_ct_resolve_clash_return"];
    plan.pair(symbols, "nf_ct_resolve_clash", programs, "flows that lost a clash count as new ones");
    let programs = ["nf_conntrack_hash_check_insert", "nf_conntrack_hash_check_insert_return"];
    plan.pair(
        symbols,
        "nf_conntrack_hash_check_insert",
        programs,
        "entries made over ctnetlink don't count as new ones",
    );
}

/// 5.10 calls nf_ct_delete.part.0 from early_drop and gc, bypassing nf_ct_delete, which calls it too.
fn plan_deletes(symbols: &Symbols, options: ProbeOptions, config: &mut Config, plan: &mut Plan) {
    let part = symbols.get("nf_ct_delete.part.0");
    let Some(function) = part.or_else(|| symbols.function("nf_ct_delete")) else {
        let costs = "deletes and the victims of evictions are not seen";
        plan.miss(symbols, "nf_ct_delete", HookKind::Kprobe, costs);
        return;
    };
    config.delete_is_part = u32::from(part.is_some());
    let program = if options.flows { "nf_ct_delete" } else { "nf_ct_delete_victims" };
    plan.add(program, &function.name, HookKind::Kprobe);
}

fn pair_function(symbols: &Symbols) -> Option<String> {
    symbols
        .function("init_conntrack")
        .or_else(|| symbols.function("__nf_conntrack_alloc"))
        .map(|symbol| symbol.name.clone())
}

impl Plan {
    /// Whether this program is to be attached.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.attachments.iter().any(|one| one.program == program)
    }

    /// A function's entry and return, or a note of what is missing without them.
    fn pair(&mut self, symbols: &Symbols, function: &str, [entry, back]: [&'static str; 2], otherwise: &str) {
        match symbols.function(function) {
            Some(symbol) => {
                self.add(entry, &symbol.name, HookKind::Kprobe);
                self.add(back, &symbol.name, HookKind::Kretprobe);
            }
            None => self.miss(symbols, function, HookKind::Kprobe, otherwise),
        }
    }

    fn miss(&mut self, symbols: &Symbols, function: &str, kind: HookKind, costs: &str) {
        self.missing.push(MissingHook {
            function: function.to_owned(),
            kind,
            costs: costs.to_owned(),
            reason: symbols.refusal(function).unwrap_or("it is not in /proc/kallsyms").to_owned(),
        });
    }

    fn add(&mut self, program: &'static str, function: &str, kind: HookKind) {
        self.attachments.push(Attachment { program, function: function.to_owned(), kind });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ProbeOptions = ProbeOptions {
        kprobes: true,
        flows: true,
        insert_events: false,
        loss_events: false,
        event_details: false,
        owners: false,
        invalid: false,
        trace_init_conntrack: false,
        raw_tracepoints: RawTpReentrancy::Skipped,
    };

    const EVERYTHING: [&str; 10] = [
        "nf_hook_slow",
        "early_drop",
        "nf_ct_delete",
        "gc_worker",
        "nf_ct_expect_related_report",
        "__nf_conntrack_confirm",
        "nf_ct_resolve_clash",
        "nf_conntrack_hash_check_insert",
        "nf_conntrack_pernet_exit",
        "init_conntrack.isra.0",
    ];

    fn symbols(names: &[&str]) -> Symbols {
        let text: String =
            names.iter().enumerate().map(|(at, name)| format!("{:016x} t {name}\n", (at + 1) * 16)).collect();
        Symbols::parse(text.as_bytes()).expect("readable kallsyms")
    }

    fn programs(plan: &Plan) -> Vec<(&str, &str)> {
        plan.attachments.iter().map(|one| (one.program, one.function.as_str())).collect()
    }

    #[test]
    fn a_healthy_host_pays_for_nothing_but_the_counting_of_flows() {
        let found = symbols(&EVERYTHING);
        let mut config = Config::default();
        let all = plan(&found, OPTIONS, &mut config).expect("a plan");
        assert_eq!(
            programs(&all),
            [
                ("kfree_skb", "kfree_skb"),
                ("kfree_skb_twin", "kfree_skb"),
                ("early_drop_return", "early_drop"),
                ("nf_ct_delete", "nf_ct_delete"),
                ("gc_worker", "gc_worker"),
                ("gc_worker_return", "gc_worker"),
                ("expect_related_return", "nf_ct_expect_related_report"),
                ("nf_conntrack_confirm", "__nf_conntrack_confirm"),
                ("nf_ct_resolve_clash", "nf_ct_resolve_clash"),
                ("nf_ct_resolve_clash_return", "nf_ct_resolve_clash"),
                ("nf_conntrack_hash_check_insert", "nf_conntrack_hash_check_insert"),
                ("nf_conntrack_hash_check_insert_return", "nf_conntrack_hash_check_insert"),
                ("nf_conntrack_pernet_exit", "nf_conntrack_pernet_exit"),
            ]
        );
        assert_eq!((config.by_kfree_skb, config.early_drop_probed), (1, 1));
        let none = plan(
            &found,
            ProbeOptions { flows: false, raw_tracepoints: RawTpReentrancy::Nested, ..OPTIONS },
            &mut config,
        )
        .expect("a plan");
        assert_eq!(
            programs(&none),
            [
                ("kfree_skb", "kfree_skb"),
                ("early_drop_return", "early_drop"),
                ("nf_ct_delete_victims", "nf_ct_delete"),
                ("gc_worker", "gc_worker"),
                ("gc_worker_return", "gc_worker"),
                ("expect_related_return", "nf_ct_expect_related_report"),
                ("nf_conntrack_pernet_exit", "nf_conntrack_pernet_exit"),
            ]
        );
    }

    #[test]
    fn where_raw_tracepoints_are_preempted_the_first_look_at_a_packet_comes_through_perf() {
        let found = symbols(&EVERYTHING);
        let first_two = |perf| {
            let mut config = Config::default();
            let options = ProbeOptions { raw_tracepoints: RawTpReentrancy::Preempted { perf }, ..OPTIONS };
            let plan = plan(&found, options, &mut config).expect("a plan");
            assert_eq!((config.preempts, plan.notes.is_empty()), (1, perf));
            [0, 1].map(|at| (plan.attachments[at].program, plan.attachments[at].kind.name()))
        };
        let twin = ("kfree_skb_twin", "raw_tracepoint");
        assert_eq!(first_two(true), [("kfree_skb_held", "tracepoint"), twin]);
        assert_eq!(first_two(false), [("kfree_skb", "raw_tracepoint"), twin]);
    }

    #[test]
    fn on_5_10_deletes_are_seen_in_the_part_that_early_drop_calls() {
        let found = symbols(&[&EVERYTHING[..], &["nf_ct_delete.part.0"]].concat());
        let mut config = Config::default();
        let plan = plan(&found, OPTIONS, &mut config).expect("a plan");
        assert!(programs(&plan).contains(&("nf_ct_delete", "nf_ct_delete.part.0")));
        assert_eq!(config.delete_is_part, 1);
        assert!(plan.missing.is_empty(), "{:?}", plan.missing);
    }

    #[test]
    fn the_pair_replaces_the_tracepoint_when_asked_for_or_when_nf_hook_slow_is_missing() {
        let mut config = Config::default();
        let found = symbols(&["init_conntrack.constprop.0", "early_drop", "nf_ct_delete"]);
        let by_pair = plan(&found, OPTIONS, &mut config).expect("a plan");
        assert_eq!(by_pair.attachments[0].function, "init_conntrack.constprop.0");
        assert_eq!((config.by_kfree_skb, config.pair_on_alloc), (0, 0));
        let mut config = Config::default();
        let found = symbols(&["nf_hook_slow", "__nf_conntrack_alloc"]);
        let asked = plan(&found, ProbeOptions { trace_init_conntrack: true, ..OPTIONS }, &mut config)
            .expect("a plan");
        assert!(programs(&asked).contains(&("init_conntrack_return", "__nf_conntrack_alloc")));
        assert_eq!((config.by_kfree_skb, config.pair_on_alloc), (0, 1));
    }

    #[test]
    fn a_function_that_refuses_its_probe_costs_what_it_stands_for_and_no_more() {
        let mut found = symbols(&[&EVERYTHING[..], &["nf_ct_delete.part.0"]].concat());
        let mut config = Config::default();
        found.refuse("gc_worker", "Invalid argument".to_owned());
        // The function that early_drop doesn't call is no substitute for its part.
        found.refuse("nf_ct_delete.part.0", "Invalid argument".to_owned());
        let plan = plan(&found, OPTIONS, &mut config).expect("a plan");
        let missing: Vec<_> =
            plan.missing.iter().map(|one| (one.function.as_str(), one.reason.as_str())).collect();
        assert_eq!(missing, [("nf_ct_delete", "Invalid argument"), ("gc_worker", "Invalid argument")]);
        assert!(!programs(&plan).iter().any(|(_, function)| function.starts_with("nf_ct_delete")));
        assert!(programs(&plan).contains(&("early_drop_return", "early_drop")));
    }

    #[test]
    fn without_any_symbol_there_is_no_plan_but_a_reason() {
        let reason =
            plan(&symbols(&["early_drop"]), OPTIONS, &mut Config::default()).expect_err("nothing to attach");
        assert!(reason.contains("nf_hook_slow"), "{reason}");
    }
}
