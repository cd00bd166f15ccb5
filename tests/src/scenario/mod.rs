//! The list of scenarios, and the runner that gives each its own process, a time limit and a clean kernel.
//! A scenario may not lean on another: any one runs alone with `--only`.

mod advice;
mod attach;
mod cases;
mod causes;
mod census;
mod census_odds;
mod cpus;
mod crowds;
mod doors;
mod elsewhere;
mod eviction;
mod expectations;
mod filters;
mod firewall;
mod hooks;
mod inside;
mod kept;
mod leftovers;
mod lives;
mod load;
mod loopback;
mod machine;
mod module;
mod namespaces;
mod newcomers;
mod notrack;
mod occupancy;
mod odd;
mod owners;
mod prerouting;
mod privileges;
mod published;
mod readers;
mod record;
mod recorded_rules;
mod scan;
pub mod soak;
mod stateless;
mod storm;
mod story;
mod stuck;
mod systemd;
mod tuples;
mod usage;
mod victims;
mod way_back;
mod way_in;

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::cpu_times::CpuTimes;
use crate::shell::{exists, run, sh};
use crate::{netns, nftables, sys, sysctl};

/// How a scenario that didn't fail ended.
pub enum Outcome {
    /// All held; the figures behind it.
    Passed(String),
    /// This kernel can't show it.
    Skipped(String),
}

/// What a scenario is told about the machine.
pub struct Guest {
    /// As given by `--kernel`: "5.10", "6.1", "6.12", "7", "6.12-no-procfs".
    pub kernel: String,
}

impl Guest {
    /// Whether this is Debian's 5.10, which lacks chain limits and probes nf_ct_delete under another name.
    pub fn is_5_10(&self) -> bool {
        self.kernel == "5.10"
    }
}

type Body = fn(&Guest) -> Result<Outcome>;

/// The kernels that the guests have, as `--kernel` names them: oldest first, then the one that has no /proc/net/stat/nf_conntrack.
const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "7", "6.12-no-procfs"];

/// On which kernels a scenario runs: those that can make a difference to it. Each group of the list says why.
type On = &'static [&'static str];

const ALL: On = &["5.10", "6.1", "6.12", "7"];
/// What is counted and explained, whoever the judge is: /proc or ctnetlink. What a packet's tuple says, what a listing
/// says, and the story don't depend on it.
const ALL_AND_NO_PROCFS: On = &KERNELS;
/// Where what matters came at some time between the two; the kernels in between have either.
const OLDEST_AND_NEWEST: On = &["5.10", "7"];
/// Where the kernel only carries what userspace does. They are spread so that the guests end at about the same time;
/// whatever starts ctwatch often is on 6.12, where a start takes the fewest instructions: half of those on 5.10.
const ON_5_10: On = &["5.10"];
const ON_5_10_AND_6_12: On = &["5.10", "6.12"];
const ON_6_1: On = &["6.1"];
const ON_6_12: On = &["6.12"];
const ON_7: On = &["7"];
/// Soaks: too long for every run, and asked for by their full names. docs/benchmarks.md has their figures.
const ON_REQUEST: On = &[];

/// Which of a kernel's scenarios a guest runs, where there are two guests of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lane {
    /// Those that keep the CPUs busy
    Busy,
    /// Those that mostly wait, and so may run beside the others
    Waiting,
}

/// They leave the CPUs idle for most of their time: they wait for the kernel's collector, for timeouts, for a recording to grow, and for
/// what happens when nobody answers. None counts packets by the time they were sent at.
const WAITING: [&str; 12] = [
    "a_clock_that_is_set_thins_nothing",
    "a_recording_judges_rules_as_live_does",
    "a_way_in_is_kept_while_the_table_is_full",
    "advice_is_tried_and_stays_only_if_confirmed",
    "flows_that_never_get_in_need_their_rate_times_their_timeout",
    "in_a_container_host_is_the_initial_netns_alone",
    "no_limit_is_said_in_every_view",
    "record_by_script_and_without_loss_of_its_own",
    "rows_that_sum_up_others_and_times_keep_their_place",
    "signals_are_heard_by_whoever_is_stuck",
    "tables_in_trouble_are_listed_on_each_backend",
    "victims_of_gc_are_named",
];

/// Name, body, time limit in seconds, kernels.
struct Scenario(&'static str, Body, u64, On);

impl Scenario {
    /// Whether it is to run on this kernel when these comma-separated words are asked for; a full name runs anywhere.
    fn is_wanted(&self, kernel: &str, only: &str, lane: Option<Lane>) -> bool {
        let own = if WAITING.contains(&self.0) { Lane::Waiting } else { Lane::Busy };
        lane.is_none_or(|lane| lane == own)
            && only
                .split(',')
                .any(|word| self.0 == word || (self.0.contains(word) && self.3.contains(&kernel)))
    }
}

const SCENARIOS: &[Scenario] = &[
    // Probes and their offsets, the kernel's counters, causes and the order of events: each kernel has its own
    // code for all of it.
    Scenario(
        "udp_loopback_v4_and_v6_losses_equal_the_senders_eperm_per_port",
        loopback::udp_losses_equal_eperm,
        240,
        ALL_AND_NO_PROCFS,
    ),
    Scenario(
        "tcp_syn_losses_with_retransmits_equal_an_nft_counter_before_conntrack",
        loopback::tcp_losses_equal_nft_counters,
        240,
        ALL_AND_NO_PROCFS,
    ),
    Scenario(
        "prerouting_losses_over_veth_from_another_netns",
        prerouting::losses_over_veth,
        240,
        ALL_AND_NO_PROCFS,
    ),
    Scenario("tuples_are_right_in_all_fields", tuples::right_in_all_fields, 240, ALL),
    Scenario("evictions_equal_the_kernels_early_drop", eviction::equal_early_drop, 240, ALL_AND_NO_PROCFS),
    Scenario("firewall_drops_add_nothing_with_kprobes", firewall::add_nothing_with_kprobes, 240, ALL),
    Scenario("tracepoint_backend_is_exact_without_a_firewall", firewall::tracepoint_alone_is_exact, 240, ALL),
    Scenario(
        "firewall_drops_are_never_claimed_by_the_tracepoint_backend",
        firewall::never_claimed_by_tracepoint,
        240,
        ALL,
    ),
    Scenario(
        "counters_backend_shows_the_kernels_totals",
        firewall::counters_backend_shows_totals,
        240,
        ALL_AND_NO_PROCFS,
    ),
    // From 7.0 on a preempted program can cost a packet its tuple beside such a neighbour: docs/how-it-works.md.
    Scenario(
        "a_slow_neighbours_probe_costs_no_tuple",
        attach::a_slow_neighbour_costs_no_tuple,
        300,
        &["5.10", "6.1", "6.12"],
    ),
    // Only there is a task preempted between a count and the free.
    Scenario("a_packet_freed_long_after_its_count_counts_once", attach::freed_long_after, 300, ON_7),
    Scenario("both_ways_of_seeing_table_full_agree", attach::both_ways_agree, 240, ALL),
    // How probes come and go changed twice between the two (fprobes, rethooks); single starts and stops run on each kernel.
    Scenario(
        "attach_and_detach_50_times_in_a_storm",
        attach::fifty_times_in_a_storm,
        2400,
        OLDEST_AND_NEWEST,
    ),
    // How the kernel refuses a probe changed with its kprobes; what is left without one is ours on all of them.
    Scenario(
        "a_hook_the_kernel_refuses_costs_its_feature_and_not_the_start",
        hooks::refused,
        400,
        OLDEST_AND_NEWEST,
    ),
    Scenario("a_start_without_files_or_locked_memory_says_what_to_raise", hooks::limits, 240, ON_5_10),
    Scenario("nothing_is_left_after_sigint_sigterm_and_kill9", leftovers::nothing_is_left, 240, ALL),
    Scenario("refused_after_nfqueue_is_named", doors::nfqueue, 240, ALL),
    Scenario("refused_in_openvswitch_is_named", doors::openvswitch, 240, ALL),
    Scenario("refused_on_a_bridge_is_named", doors::bridge, 240, ALL),
    // Before 6.11 act_ct lets a packet go on that conntrack refused.
    Scenario("refused_in_act_ct_is_named", doors::act_ct, 240, &["6.12", "7"]),
    Scenario("two_netns_full_at_once", namespaces::two_full_at_once, 240, ALL_AND_NO_PROCFS),
    Scenario(
        "the_judge_is_named_in_check_start_and_end",
        namespaces::judge_is_named,
        240,
        &["6.12", "6.12-no-procfs"],
    ),
    Scenario("since_boot_is_what_the_kernel_counted_before", namespaces::since_boot, 240, ALL_AND_NO_PROCFS),
    Scenario("chain_too_long_is_told_apart", causes::chain_too_long, 300, ALL_AND_NO_PROCFS),
    Scenario("clash_is_told_apart", causes::clash, 300, ALL),
    Scenario("nat_port_exhaustion_is_a_clash", causes::nat_port_exhaustion, 240, ALL_AND_NO_PROCFS),
    Scenario("invalid_packets_are_counted_when_asked_for", causes::invalid, 240, ALL),
    Scenario("victims_of_early_drop_are_named_with_two_ctwatch_and_bpftrace", victims::are_named, 400, ALL),
    Scenario(
        "more_tasks_evict_than_there_is_room_to_remember",
        victims::of_many_tasks,
        300,
        OLDEST_AND_NEWEST,
    ),
    // gc evicts in another way since 5.16, and comes when it likes: minutes of waiting. What it ends an entry with is the
    // function that early_drop uses, which the scenario before this one watches on each kernel.
    Scenario("victims_of_gc_are_named", victims::of_gc, 500, OLDEST_AND_NEWEST),
    Scenario("one_inode_number_two_lives", lives::one_inode_two_lives, 240, ALL_AND_NO_PROCFS),
    Scenario("an_inode_number_is_taken_over_unnoticed", lives::taken_over_unnoticed, 240, ON_5_10_AND_6_12),
    Scenario(
        "three_causes_in_two_netns_while_others_come_and_go",
        lives::three_causes_in_two_netns,
        300,
        ALL_AND_NO_PROCFS,
    ),
    Scenario("drop_storm_keeps_per_port_totals_exact", storm::per_port_totals_exact, 300, ALL_AND_NO_PROCFS),
    Scenario("a_new_victim_has_its_row_after_a_scan_of_all_ports", scan::new_victim_has_its_row, 400, ON_7),
    Scenario("the_story_names_redis_on_loopback_first", story::names_redis_first, 400, ALL),
    Scenario(
        "cpus_offline_at_start_plugged_and_unplugged_in_a_storm",
        cpus::come_and_go,
        300,
        ALL_AND_NO_PROCFS,
    ),
    Scenario("namespaces_destroyed_at_once_are_told_each", crowds::destroyed_at_once, 300, ON_5_10_AND_6_12),
    Scenario("three_hundred_netns_and_three_hundred_more", crowds::three_hundred_and_more, 600, ON_REQUEST),
    Scenario(
        "more_namespaces_lose_than_there_is_room_for",
        crowds::more_than_there_is_room_for,
        1800,
        ON_REQUEST,
    ),
    Scenario("namespaces_in_churn_leave_memory_and_cpu_flat", crowds::churn, 900, ON_REQUEST),
    // What a container may see changed once in between (5.15).
    Scenario(
        "in_a_container_host_is_the_initial_netns_alone",
        inside::host_is_elsewhere,
        240,
        OLDEST_AND_NEWEST,
    ),
    // Whose packet it was comes from the stack the kernel runs the hook on, and from its cgroups.
    Scenario("retransmits_bear_the_clients_name", owners::retransmits_bear_the_clients_name, 240, ALL),
    Scenario("inbound_losses_name_the_listener", owners::inbound_losses_name_the_listener, 240, ALL),
    Scenario("containers_are_named", owners::containers_are_named, 240, ALL),
    // Counted inserts and deletes, and what a ctnetlink dump holds, repeats and restarts at.
    Scenario("occupancy_equals_conntrack_l", occupancy::equals_conntrack_l, 400, ALL),
    Scenario("table_equals_conntrack_l_by_every_key", census::equals_conntrack_l, 400, ALL),
    Scenario("table_of_two_netns", census::two_netns, 240, ALL_AND_NO_PROCFS),
    Scenario("table_under_churn_and_resizes_counts_each_entry_once", census_odds::churn_and_resize, 600, ALL),
    Scenario("table_that_is_empty", census_odds::empty_table, 240, ALL),
    // Modules: who holds whom, what loads what, and what goes with a reload.
    Scenario("table_without_conntrack", census_odds::not_loaded, 240, ALL),
    Scenario(
        "module_not_loaded_waits_and_reload_reattaches",
        module::waits_and_reattaches,
        300,
        ALL_AND_NO_PROCFS,
    ),
    // The machine's facts are the kernel's own: its timeouts, its slab, its defaults.
    Scenario("facts_of_the_machine_equal_the_tools", machine::facts_equal_the_tools, 240, ALL),
    // A recorder stands on the same probes, and takes its listings and losses at its own moments.
    Scenario(
        "record_an_incident_with_known_figures",
        record::incident_with_known_figures,
        300,
        ALL_AND_NO_PROCFS,
    ),
    // Where the kernel's own counters judge what a stuck reader or a set clock cost.
    Scenario("a_storm_that_nobody_reads_is_counted", stuck::storm_nobody_reads, 300, OLDEST_AND_NEWEST),
    Scenario("signals_are_heard_by_whoever_is_stuck", stuck::signals_are_heard, 400, ON_6_12),
    Scenario("a_clock_that_is_set_thins_nothing", stuck::clock_is_set, 300, ON_6_12),
    // Which function calls the helpers differs from kernel to kernel.
    Scenario("expectations_full_are_told_from_the_firewall", expectations::full, 240, ALL),
    // gc expires and evicts in another way since 5.16, and what is forecast waits for it.
    Scenario(
        "forecasts_when_the_table_will_be_full",
        occupancy::forecasts_when_it_will_be_full,
        400,
        OLDEST_AND_NEWEST,
    ),
    Scenario("advice_is_followed_and_undone", advice::followed_and_undone, 600, ON_6_12),
    // Capabilities, memlock and sandboxes: 5.10 has the rules from before memcg accounting.
    Scenario("record_as_a_systemd_unit", systemd::the_unit_records, 300, OLDEST_AND_NEWEST),
    Scenario("live_commands_need_exactly_their_capabilities", privileges::exactly_those, 240, ALL),
    Scenario("table_rights_and_mistakes", census_odds::rights_and_mistakes, 240, OLDEST_AND_NEWEST),
    // Userspace filters, reckons and refuses with what the scenarios above hold to on each kernel.
    Scenario("usage_errors", usage::errors, 240, ON_6_12),
    Scenario("tables_in_trouble_are_listed_on_each_backend", odd::tables_in_trouble, 400, ON_6_12),
    // What ctnetlink lists beside the table went with 5.19; 7 lets both packets of an ICMP clash pass.
    Scenario("dying_entries_are_named", odd::dying_entries, 240, ON_5_10_AND_6_12),
    Scenario("a_clash_between_zones_names_them", odd::clash_between_zones, 300, ON_5_10_AND_6_12),
    Scenario("bounds_are_shown_as_bounds", odd::bounds, 400, ON_6_12),
    Scenario("no_limit_is_said_in_every_view", odd::no_limit, 400, ON_6_12),
    Scenario("rows_that_sum_up_others_and_times_keep_their_place", odd::rows_and_columns, 300, ON_6_12),
    Scenario("rights_of_containers_and_user_namespaces_are_told", odd::rights, 400, ON_6_12),
    Scenario("filters_and_keys", filters::filters_and_keys, 600, ON_6_12),
    Scenario(
        "record_by_script_and_without_loss_of_its_own",
        record::script_and_no_loss_of_its_own,
        300,
        ON_6_12,
    ),
    // Rules do the same on all kernels that have them; nft and both iptables print and take them as the kernel's
    // age allows.
    Scenario("notrack_breaks_what_the_judge_says_and_nothing_else", notrack::judged, 900, OLDEST_AND_NEWEST),
    // They run natively each time: what the judge reads and the commands do is the same there, in a tenth of the time.
    Scenario(
        "rule_sets_as_people_have_them_get_the_right_answer",
        cases::have_the_right_answer,
        2400,
        ON_REQUEST,
    ),
    Scenario(
        "a_firewall_without_need_is_taken_away_and_put_back",
        stateless::taken_away_and_put_back,
        400,
        ON_6_1,
    ),
    // Directions and errors are reckoned from a listing, which the scenarios above compare on each kernel.
    Scenario("table_tells_directions", census::directions, 240, ON_6_1),
    Scenario("table_errors_of_a_bounded_top_are_true", census::errors_of_a_bounded_top, 400, ON_6_12),
    // Only reads /proc and command lines.
    Scenario(
        "real_programs_are_identified_with_their_clients",
        machine::real_programs_are_identified,
        300,
        ON_7,
    ),
    // The load is this crate's own, over loopback TCP.
    Scenario("an_open_loop_holds_its_rate_on_a_full_table", load::holds_its_rate, 400, ON_6_12),
    // Files and scripts: what is kept where, by which init.
    Scenario(
        "notrack_is_kept_where_a_host_has_a_way_and_says_so_where_not",
        kept::over_a_reboot,
        240,
        ON_6_1,
    ),
    // What is refused is decided by reading rules, proxies and addresses.
    Scenario("advice_is_refused_where_it_would_break_something", advice::refused, 400, ON_6_12),
    Scenario("advice_is_refused_for_published_ports", published::refused, 240, ON_6_1),
    // A script, signals and terminals; the rules are nft's own.
    Scenario("advice_is_tried_and_stays_only_if_confirmed", way_back::confirmed_or_taken_back, 600, ON_6_12),
    // Listing, storing and judging rules, all in userspace.
    Scenario("a_recording_judges_rules_as_live_does", recorded_rules::judged_as_live, 500, ON_6_12),
    Scenario("advice_for_another_netns_acts_inside_it", elsewhere::acts_inside, 240, ON_6_12),
    Scenario("advice_for_a_process_s_netns_acts_in_no_other", elsewhere::acts_in_no_other, 240, ON_6_12),
    // Arithmetic over counters and timeouts that the scenarios above compare on each kernel.
    Scenario(
        "flows_that_never_get_in_need_their_rate_times_their_timeout",
        newcomers::need_rate_times_timeout,
        500,
        ON_6_12,
    ),
    Scenario("advice_in_a_quiet_window_and_about_icmp", newcomers::quiet_and_icmp, 240, ON_6_12),
    Scenario("advice_inside_a_netns_says_what_only_the_host_may_set", newcomers::only_the_host, 240, ON_6_1),
    // Rules, once more, and who listens.
    Scenario("a_way_in_is_kept_while_the_table_is_full", way_in::kept, 300, ON_6_12),
    // Usage, and tools that are missing.
    Scenario("advice_for_nobody_on_nothing_and_without_tools", advice::odds, 240, ON_6_1),
    Scenario("advice_without_conntrack", advice::not_loaded, 240, ON_6_12),
    // Rotation, locks and a killed writer are the file's business.
    Scenario("record_rotates_refuses_and_survives_kill9", record::rotation_refusal_and_kill9, 300, ON_6_12),
];

/// Exit code of a scenario's process that was skipped.
const SKIPPED: i32 = 77;

/// The names of the scenarios that [`run_all`] would run.
pub fn names(kernel: &str, only: &str, lane: Option<Lane>) -> Result<Vec<&'static str>> {
    Ok(wanted(kernel, only, lane)?.into_iter().map(|scenario| scenario.0).collect())
}

/// Those for this kernel whose name contains one of the comma-separated words in `only`, and those named in full.
fn wanted(kernel: &str, only: &str, lane: Option<Lane>) -> Result<Vec<&'static Scenario>> {
    ensure!(KERNELS.contains(&kernel), "{kernel} is none of the kernels {}", KERNELS.join(", "));
    for word in only.split(',') {
        ensure!(
            SCENARIOS.iter().any(|scenario| scenario.0.contains(word)),
            "no scenario's name contains `{word}`"
        );
    }
    Ok(SCENARIOS.iter().filter(|scenario| scenario.is_wanted(kernel, only, lane)).collect())
}

/// Runs the wanted scenarios; true when none failed.
pub fn run_all(kernel: &str, only: &str, lane: Option<Lane>) -> Result<bool> {
    let wanted = wanted(kernel, only, lane)?;
    let missing: Vec<_> = ["ip", "nft", "iptables-legacy", "ctwatch", "bpftool"]
        .into_iter()
        .filter(|program| !exists(program))
        .collect();
    ensure!(missing.is_empty(), "not on PATH: {}", missing.join(", "));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    println!(
        "kernel {} on {} CPUs, {} of {} scenarios",
        release.trim(),
        sys::cpus(),
        wanted.len(),
        SCENARIOS.len()
    );
    let limit = prepare()?;
    let mut failed = 0;
    for scenario in &wanted {
        let (started, cpus) = (Instant::now(), CpuTimes::read()?);
        let verdict = in_own_process(kernel, scenario);
        let took = started.elapsed().as_secs_f64();
        let idle = CpuTimes::read()?.idle_since(&cpus);
        match verdict {
            // What mostly waits may run beside others: see [`Lane`].
            Ok(Outcome::Passed(figures)) => {
                println!("ok {} ({took:.1} s) {figures} [idle {idle:.0} %]", scenario.0);
            }
            Ok(Outcome::Skipped(why)) => println!("skipped {}: {why}", scenario.0),
            Err(error) => {
                failed += 1;
                println!("FAILED {} ({took:.1} s): {error:#}", scenario.0);
            }
        }
        clean_up(limit).with_context(|| format!("cleaning up after {}", scenario.0))?;
    }
    println!("{} of {} scenarios failed on {}", failed, wanted.len(), release.trim());
    Ok(failed == 0)
}

/// Runs one scenario in this process, for [`run_all`], which reads stdout and the exit code.
pub fn run_one(kernel: &str, name: &str) -> Result<i32> {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.0 == name);
    let Scenario(_, body, ..) = scenario.with_context(|| format!("no scenario is called {name}"))?;
    sys::allow_open_files(65_536);
    match body(&Guest { kernel: kernel.to_owned() })? {
        Outcome::Passed(figures) => println!("{figures}"),
        Outcome::Skipped(why) => {
            println!("{why}");
            return Ok(SKIPPED);
        }
    }
    Ok(0)
}

fn in_own_process(kernel: &str, Scenario(name, _, seconds, _): &Scenario) -> Result<Outcome> {
    let mut child = Command::new(std::env::current_exe().context("the own path")?)
        .args(["guest", "--kernel", kernel, "--one", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own process group, so that a hang takes its ctwatch, bpftrace and nginx along.
        .process_group(0)
        .spawn()
        .context("starting the scenario's process")?;
    let group = Pid::from_raw(child.id().cast_signed());
    let out = text_of(child.stdout.take().context("its stdout")?);
    let err = text_of(child.stderr.take().context("its stderr")?);
    let until = Instant::now() + Duration::from_secs(*seconds);
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for the scenario")? {
            break Some(status);
        }
        if Instant::now() > until {
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    // Whatever it started and left ends here, also when it finished by itself.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    match status.map(|status| status.code()) {
        Some(Some(0)) => Ok(Outcome::Passed(out)),
        Some(Some(SKIPPED)) => Ok(Outcome::Skipped(out)),
        Some(_) => bail!("{err}"),
        None => bail!("no end within {seconds} s; stderr: {err}"),
    }
}

fn text_of(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim().to_owned()
    })
}

/// Loads what every scenario needs and returns the limit to go back to.
fn prepare() -> Result<u64> {
    for module in ["nf_conntrack", "nf_conntrack_netlink", "nf_tables", "nft_ct", "nft_counter", "veth"] {
        // Some kernels have one of them built in or under another name; what is truly missing shows at its first use.
        let _ = run(&["modprobe", module]);
    }
    sh("ip link set lo up")?;
    sysctl::read(sysctl::MAX)
}

fn clean_up(limit: u64) -> Result<()> {
    nftables::flush()?;
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        let loaded = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default()
            + &fs::read_to_string("/proc/net/ip6_tables_names").unwrap_or_default();
        for table in loaded.lines() {
            let _ = run(&[tool, "-w", "-t", table, "-F"]);
            let _ = run(&[tool, "-w", "-t", table, "-X"]);
        }
    }
    netns::delete_leftovers()?;
    let _ = run(&["modprobe", "-a", "nf_conntrack", "nf_conntrack_netlink"]);
    fs::write(sysctl::MAX, limit.to_string()).context("putting nf_conntrack_max back")?;
    let _ = run(&["conntrack", "-F"]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_runs_on_a_kernel_that_there_is() {
        for Scenario(name, _, _, on) in SCENARIOS {
            assert!(on.iter().all(|kernel| KERNELS.contains(kernel)), "{name} on {on:?}");
            let runs = |only| KERNELS.iter().any(|kernel| names(kernel, only, None).unwrap().contains(name));
            assert!(runs(*name), "{name} runs nowhere");
            assert_eq!(runs(""), *on != ON_REQUEST, "{name}");
        }
    }

    #[test]
    fn no_name_is_given_twice() {
        let names: std::collections::BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.0).collect();
        assert_eq!(names.len(), SCENARIOS.len());
    }

    #[test]
    fn each_scenario_of_a_kernel_runs_in_one_of_its_two_guests() {
        assert!(WAITING.iter().all(|name| SCENARIOS.iter().any(|scenario| scenario.0 == *name)));
        for kernel in KERNELS {
            let of = |lane| names(kernel, "", lane).unwrap();
            let both = [of(Some(Lane::Busy)), of(Some(Lane::Waiting))].concat();
            assert_eq!(both.len(), of(None).len());
            assert!(of(None).iter().all(|name| both.contains(name)));
        }
    }

    #[test]
    fn a_part_of_a_name_keeps_to_its_kernels_and_a_full_name_goes_anywhere() {
        let names = |kernel, only| names(kernel, only, None).unwrap();
        assert_eq!(names("7", "real_programs"), ["real_programs_are_identified_with_their_clients"]);
        assert!(names("5.10", "real_programs").is_empty());
        let full = "real_programs_are_identified_with_their_clients";
        assert_eq!(names("5.10", full), [full]);
        assert!(wanted("6.12", "no_such_thing", None).is_err());
        assert!(wanted("6.13", "", None).is_err());
    }
}
