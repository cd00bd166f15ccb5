//! What several commands take: filters, rows, formats, spans, and the parsers of single values.
//! A parser's error completes clap's `invalid value '…' for '--flag <NAME>': `, so it says what a good value looks like.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use clap::Args;
use clap::builder::{PathBufValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use ctwatch_common::Cause;
use ipnet::IpNet;
use jiff::SignedDuration;

use crate::model::{Backend, NetnsNumber, Protocol, port_of_service};
use crate::record::span::Moment;
use crate::state::{By, Filter, PortRange};
use crate::text::{did_you_mean, nearest};

/// Which losses or entries make rows. The help heading differs, so it is set where this is flattened.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// Only these service ports, e.g. 80,443,6000-6010
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = ports)]
    port: Vec<PortRange>,
    /// Only these sources, e.g. 10.0.0.0/8,fd00::/8
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    src: Vec<IpNet>,
    /// Only these destinations
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    dst: Vec<IpNet>,
    #[arg(
        long, value_name = "PROTO", value_delimiter = ',', value_parser = protocol,
        help = "Only these protocols: tcp, udp, icmp, icmpv6,\nsctp, gre, esp, … or a number"
    )]
    proto: Vec<Protocol>,
    #[arg(
        long, value_name = "NETNS", value_delimiter = ',', value_parser = netns, display_order = AFTER_CAUSE,
        help = "Only these network namespaces: host, a name, an\ninode (N or net:[N]) or pid:N"
    )]
    netns: Vec<NetnsSpec>,
    /// Only loopback traffic; with =no, all other traffic
    #[arg(
        long, value_name = "only|no", num_args = 0..=1, require_equals = true, value_parser = only_or_no(),
        default_missing_value = "only", hide_possible_values = true, display_order = AFTER_CAUSE + 1
    )]
    loopback: Option<bool>,
}

/// [`FilterArgs`], plus what only losses have.
#[derive(Debug, Args)]
pub struct LossFilterArgs {
    #[command(flatten)]
    flows: FilterArgs,
    /// Only these causes: table_full, evicted, clash, …
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = cause)]
    cause: Vec<Cause>,
}

/// Keeps `--cause` in the middle of the filters in help, though it is declared after them.
const AFTER_CAUSE: usize = 100;

/// The heading of the filters of losses.
pub const LOSS_FILTERS: &str = "Filters (on rows and events; comma-separated, repeatable)";

impl FilterArgs {
    /// The filter, and the namespaces that are still to be looked up.
    pub fn into_filter(self) -> (Filter, Vec<NetnsSpec>) {
        let Self { port, src, dst, proto, netns, loopback } = self;
        let filter =
            Filter { ports: port, src, dst, protos: proto, causes: Vec::new(), netns: None, loopback };
        (filter, netns)
    }
}

impl LossFilterArgs {
    /// The filter, and the namespaces that are still to be looked up.
    pub fn into_filter(self) -> (Filter, Vec<NetnsSpec>) {
        let Self { flows, cause } = self;
        let (filter, netns) = flows.into_filter();
        (Filter { causes: cause, ..filter }, netns)
    }
}

/// Rows of losses: what one stands for, and how many there are.
#[derive(Debug, Args)]
pub struct RowArgs {
    #[arg(
        long, value_name = "KEY", value_parser = keys(),
        default_value = By::Port.name(), hide_possible_values = true,
        help = "Group rows by port, flow, src, dst, proto, cause,\nnetns, process or container"
    )]
    pub by: By,
    #[arg(
        long, value_name = "N", value_parser = rows, default_value = "20",
        help = "Rows per report; the rest are summed up"
    )]
    pub top: usize,
}

/// `--top`
pub fn rows(text: &str) -> Result<usize, String> {
    let rows = text.parse::<u32>().ok().filter(|rows| *rows > 0);
    let rows = rows.ok_or("use a number of rows from 1 up")?;
    Ok(usize::try_from(rows).unwrap_or(usize::MAX))
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people, at 80 columns.
    Text,
    /// One object per line.
    Json,
}

impl Format {
    /// Both, as help lists them.
    pub(super) const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// The spelling in flags.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    fn value(self) -> (PossibleValue, Self) {
        // One object per line has these names, too.
        let others: &[&str] = if self == Self::Json { &["ndjson", "jsonl"] } else { &[] };
        (PossibleValue::new(self.name()).aliases(others), self)
    }
}

/// `--format`
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// text, or json (one object per line)
    #[arg(
        long, value_name = "FORMAT", value_parser = choice(Format::ALL.map(Format::value)),
        default_value = Format::Text.name(), hide_possible_values = true
    )]
    pub format: Format,
}

/// Which backend the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// The best one that works here.
    Auto,
    /// This one or none.
    Forced(Backend),
}

/// What every live watch takes.
#[derive(Debug, Args)]
pub struct LiveArgs {
    /// Sampling interval
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "1s")]
    pub interval: Duration,
    /// Stop after this long [default: run until Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub duration: Option<Duration>,
    #[arg(long, help = "Don't count new and ended flows: no overhead while\nnothing is dropped")]
    pub no_inserts: bool,
    #[arg(
        long, value_name = "BACKEND", value_parser = backend(), default_value = "auto",
        hide_possible_values = true, hide_default_value = true,
        help = "kprobe, tracepoint or counters\n[default: the first of these that works]"
    )]
    pub backend: BackendChoice,
}

fn backend() -> impl TypedValueParser<Value = BackendChoice> {
    let forced = Backend::ALL.map(|backend| (backend.name(), BackendChoice::Forced(backend)));
    choice([("auto", BackendChoice::Auto)].into_iter().chain(forced))
}

/// Which part of a recording. `export --to` takes a format, so `export` declares its end itself.
#[derive(Debug, Args)]
pub struct SpanArgs {
    #[command(flatten)]
    pub start: FromArgs,
    /// End here
    #[arg(long, visible_alias = "until", value_name = "WHEN", allow_hyphen_values = true)]
    pub to: Option<Moment>,
}

/// `--from`
#[derive(Debug, Args)]
pub struct FromArgs {
    #[arg(
        long,
        value_name = "WHEN",
        allow_hyphen_values = true,
        help = "Start here: 2026-03-14T12:00:00Z or …+01:00; local\ntime as '2026-03-14 12:00', 12:00 or '12:00 CET';\n+10m from the start of the recording; -10m from\nits end"
    )]
    pub from: Option<Moment>,
}

/// `--anonymize`
#[derive(Debug, Args)]
pub struct AnonymizeArgs {
    #[arg(
        long, value_name = "KEY", num_args = 0..=1, require_equals = true, default_missing_value = "",
        help = "Pseudonymize addresses and names consistently; a\nKEY keeps addresses consistent across runs"
    )]
    anonymize: Option<String>,
}

impl AnonymizeArgs {
    /// Whether to pseudonymize names and addresses: with this key, or with a random one.
    pub fn into_key(self) -> Option<Option<String>> {
        self.anonymize.map(|key| (!key.is_empty()).then_some(key))
    }
}

/// Parses a value by its name, in any case, with `-` for `_`, or in the plural. Errors list the names; so does help, unless
/// they are hidden.
pub fn choice<N: Into<PossibleValue>, T: Clone + Send + Sync + 'static>(
    choices: impl IntoIterator<Item = (N, T)>,
) -> Choice<T> {
    Choice { choices: choices.into_iter().map(|(name, value)| (name.into(), value)).collect(), hints: &[] }
}

/// See [`choice`].
#[derive(Clone)]
pub struct Choice<T> {
    choices: Vec<(PossibleValue, T)>,
    /// What is said of values that belong elsewhere.
    hints: &'static [(&'static str, &'static str)],
}

impl<T: Clone + Send + Sync + 'static> Choice<T> {
    fn find(&self, text: &str) -> Option<T> {
        let known = |text: &str| {
            let mut choices = self.choices.iter();
            choices.find(|(value, _)| value.get_name_and_aliases().any(|name| plain(name) == text))
        };
        let text = plain(text);
        singulars(&text).find_map(known).map(|(_, value)| value.clone())
    }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Choice<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        if let Some(chosen) = value.to_str().and_then(|text| self.find(text)) {
            return Ok(chosen);
        }
        let names: Vec<PossibleValue> = self.choices.iter().map(|(name, _)| name.clone()).collect();
        let hint = value.to_str().and_then(|text| hint(self.hints, text));
        match PossibleValuesParser::new(names).parse_ref(command, argument, value) {
            Ok(_) => Err(clap::Error::new(clap::error::ErrorKind::InvalidValue).with_cmd(command)),
            Err(mut error) => {
                if let Some(hint) = hint {
                    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
                }
                Err(error)
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.choices.iter().map(|(name, _)| name.clone())))
    }
}

/// As words are compared: case and the kind of dash don't matter.
pub fn plain(text: &str) -> String {
    text.to_lowercase().replace('-', "_")
}

/// A word, and what it may be the plural of: "ports", "processes".
pub fn singulars(word: &str) -> impl Iterator<Item = &str> {
    [Some(word), word.strip_suffix('s'), word.strip_suffix("es")].into_iter().flatten()
}

/// What is said of a word that belongs elsewhere, whichever of a key's names it is.
pub fn hint(hints: &[(&str, &'static str)], text: &str) -> Option<&'static str> {
    let text = plain(text);
    let is = |key: &str| singulars(&text).any(|word| word == key || other_names(key).contains(&word));
    hints.iter().find(|(key, _)| is(key)).map(|(_, hint)| *hint)
}

/// What else the keys of `drops` and `table` are called.
pub const SAME_KEYS: [(&str, &[&str]); 10] = [
    ("port", &["service", "dport"]),
    ("flow", &["tuple", "connection", "conn"]),
    ("src", &["source", "saddr", "client"]),
    ("dst", &["destination", "dest", "daddr", "server"]),
    ("proto", &["protocol"]),
    ("cause", &["reason"]),
    ("netns", &["ns", "net", "namespace"]),
    ("process", &["proc", "pid", "comm"]),
    ("container", &["pod", "unit"]),
    ("direction", &["dir"]),
];

/// The key's other names.
pub fn other_names(key: &str) -> &'static [&'static str] {
    SAME_KEYS.iter().find(|(name, _)| *name == key).map_or(&[], |(_, names)| names)
}

fn keys() -> Choice<By> {
    let value = |by: By| (PossibleValue::new(by.name()).aliases(other_names(by.name())), by);
    const TABLE: &str = "an entry has that, a drop has not: 'ctwatch table --by' groups by it";
    let hints = &[("state", TABLE), ("direction", TABLE), ("zone", TABLE), ("mark", TABLE)];
    Choice { hints, ..choice(By::ALL.map(value)) }
}

/// A recording to be read.
pub fn recording() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        if path == Path::new("-") {
            return Err("a recording can't be read from standard input, since it is read here and there: name its file \
                        (./- if it is called so)");
        }
        Ok(path)
    })
}

fn only_or_no() -> impl TypedValueParser<Value = bool> {
    choice([
        (PossibleValue::new("only").aliases(["yes", "true"]), true),
        (PossibleValue::new("no").aliases(["not", "none", "false"]), false),
    ])
}

/// A network namespace as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsSpec {
    /// The initial namespace.
    Host,
    /// A name in /run/netns.
    Name(String),
    /// Its inode number.
    Inode(NetnsNumber),
    /// The one this process is in.
    Pid(u32),
}

/// The shortest interval: a report costs about a millisecond on a busy host.
const SHORTEST: Duration = Duration::from_millis(100);

pub fn ports(text: &str) -> Result<PortRange, String> {
    let text = text.trim();
    const GOOD: &str = "use ports and ranges like 80,6000-6010";
    let number = |text: &str| {
        text.parse::<u16>().map_err(|_| match port_of_service(text) {
            Some(port) => format!("`{text}` is not a port; {text} usually has {port}"),
            None => format!("`{text}` is not a port; {GOOD}"),
        })
    };
    let (first, last) = match text.split_once('-') {
        Some((first, "")) if !first.is_empty() => {
            number(first)?;
            return Err(format!("the range {text} has no end; {first}-65535 takes all from {first} on"));
        }
        Some(("", last)) if !last.is_empty() => {
            number(last)?;
            return Err(format!("the range {text} has no beginning; 0-{last} takes all up to {last}"));
        }
        Some((first, last)) if port_of_service(text).is_none() => (number(first)?, number(last)?),
        _ => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(format!("the range ends before it starts; did you mean {last}-{first}?"));
    }
    Ok(PortRange { first, last })
}

pub fn cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let good = "use an address or a network like 10.0.0.0/8 or fd00::/8";
    if let Ok(address) = IpAddr::from_str(text) {
        return Ok(IpNet::from(address));
    }
    let Some((address, prefix)) = text.split_once('/') else { return Err(good.to_owned()) };
    let address = IpAddr::from_str(address).map_err(|_| format!("`{address}` is not an address; {good}"))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = prefix
        .parse::<u8>()
        .ok()
        .filter(|length| *length <= longest)
        .ok_or_else(|| format!("the prefix length must be 0 to {longest}; {good}"))?;
    let net = IpNet::new(address, length).map_err(|_| good.to_owned())?;
    Ok(net.trunc())
}

pub fn protocol(text: &str) -> Result<Protocol, String> {
    let text = text.trim();
    Protocol::from_words(text).ok_or_else(|| {
        let near = nearest(text, Protocol::names());
        let near = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
        format!("{near}use tcp, udp, icmp, icmpv6, sctp, udplite, gre, esp, … or a number from 0 to 255")
    })
}

/// What else causes are called: by the kernel's counters, and by people.
const SAME_CAUSES: [(&str, Cause); 4] = [
    ("early_drop", Cause::Evicted),
    ("eviction", Cause::Evicted),
    ("gc", Cause::GcEvicted),
    ("oom", Cause::NoMemory),
];

pub fn cause(text: &str) -> Result<Cause, String> {
    let text = text.trim();
    let bare = |text: &str| plain(text).replace('_', "");
    let known = Cause::ALL.into_iter().find(|cause| bare(cause.name()) == bare(text));
    let same = || SAME_CAUSES.into_iter().find(|(word, _)| *word == plain(text)).map(|(_, cause)| cause);
    known.or_else(same).ok_or_else(|| {
        let names = Cause::ALL.map(Cause::name);
        format!("the causes are {}{}", names.join(", "), did_you_mean(&plain(text), names))
    })
}

pub fn netns(text: &str) -> Result<NetnsSpec, String> {
    let text = text.trim();
    if let Some(pid) = text.strip_prefix("pid:") {
        let pid = pid.parse().map_err(|_| "use a process id, as in pid:1234".to_owned())?;
        return Ok(NetnsSpec::Pid(pid));
    }
    if text.eq_ignore_ascii_case("host") {
        return Ok(NetnsSpec::Host);
    }
    if let Some(number) = NetnsNumber::from_words(text) {
        return Ok(NetnsSpec::Inode(number));
    }
    // A file name in /run/netns (ip-netns(8)); anything else would read outside of it.
    if text.is_empty() || text == "." || text == ".." || text.contains('/') {
        return Err("use host, a name in /run/netns, an inode number or pid:1234".to_owned());
    }
    Ok(NetnsSpec::Name(text.to_owned()))
}

pub fn duration(text: &str) -> Result<Duration, String> {
    let good = "use a time like 500ms, 1s or 2m";
    positive(SignedDuration::from_str(text).map_err(|_| without_unit(text, good))?, good)
}

/// That it is no time, and if it is a number alone, which it may be.
fn without_unit(text: &str, good: &str) -> String {
    let is_number = text.parse::<f64>().is_ok_and(|number| number.is_finite() && number > 0.0);
    if is_number { format!("{good}; did you mean {text}s?") } else { good.to_owned() }
}

fn positive(duration: SignedDuration, good: &str) -> Result<Duration, String> {
    let positive = Duration::try_from(duration).ok().filter(|duration| !duration.is_zero());
    positive.ok_or_else(|| format!("it must be longer than zero; {good}"))
}

pub fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < SHORTEST {
        return Err("the shortest interval is 100ms".to_owned());
    }
    Ok(interval)
}

/// A duration that may be written in days.
pub fn age(text: &str) -> Result<Duration, String> {
    let good = "use a time like 30s, 5m, 12h or 7d";
    let span = jiff::Span::from_str(text).map_err(|_| without_unit(text, good))?;
    let age = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| good.to_owned())?;
    positive(age, good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetnsId;

    #[test]
    fn ports_are_single_or_ranges() {
        assert_eq!(ports("6379"), Ok(PortRange { first: 6379, last: 6379 }));
        assert_eq!(ports("6000-6010"), Ok(PortRange { first: 6000, last: 6010 }));
        assert!(ports("6010-6000").unwrap_err().contains("6000-6010"));
        for bad in ["", "-", "80-", "65536", "http", "-1", "80-http", "1-2-3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
        for (near, said) in [
            ("80-", "has no end; 80-65535"),
            ("-80", "has no beginning; 0-80"),
            ("http", "http usually has 80"),
            ("HTTPS", "443"),
            ("docker-s", "2376"),
        ] {
            let error = ports(near).unwrap_err();
            assert!(error.contains(said), "{near}: {error}");
        }
    }

    #[test]
    fn a_network_may_be_given_by_any_address_in_it() {
        assert_eq!(cidr("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(cidr("fd00::1/8").unwrap().to_string(), "fd00::/8");
        assert_eq!(cidr("::1").unwrap().to_string(), "::1/128");
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "localhost", "10.0.0.0/-1"] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_netns_name_cannot_leave_its_directory() {
        assert_eq!(netns("web1"), Ok(NetnsSpec::Name("web1".to_owned())));
        for inode in ["4026531840", "net:[4026531840]"] {
            let number = NetnsNumber { inode: 4_026_531_840, generation: None };
            assert_eq!(netns(inode), Ok(NetnsSpec::Inode(number)));
        }
        let later = NetnsId::new(4_026_532_299, 1);
        let number = NetnsNumber { inode: 4_026_532_299, generation: Some(1) };
        assert_eq!(netns(&later.to_string()), Ok(NetnsSpec::Inode(number)));
        assert_eq!(netns("pid:812"), Ok(NetnsSpec::Pid(812)));
        assert_eq!(netns("host"), Ok(NetnsSpec::Host));
        for bad in ["", "..", "../1", "/proc/1/ns/net", "pid:", "pid:x"] {
            assert!(netns(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_need_a_unit_and_an_interval_has_a_floor() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["1", "", "0s", "-1s", "s", "1 fortnight"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(interval("99ms").is_err());
        assert!(interval("100ms").is_ok());
    }

    #[test]
    fn ages_know_days() {
        assert_eq!(age("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(age("90s"), Ok(Duration::from_secs(90)));
        for bad in ["", "7", "0d", "-1d"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn protocols_go_by_name_or_number() {
        assert_eq!(protocol("tcp"), Ok(Protocol(6)));
        assert_eq!(protocol("icmpv6"), Ok(Protocol(58)));
        assert_eq!(protocol("112"), Ok(Protocol(112)));
        assert_eq!(protocol("ICMP6"), Ok(Protocol(58)));
        assert!(protocol("256").is_err());
        assert!(protocol("tpc").unwrap_err().contains("did you mean `tcp`?"));
    }

    #[test]
    fn causes_are_taken_in_other_spellings_and_near_ones_told() {
        for (text, meant) in [
            ("table_full", Cause::TableFull),
            ("TABLE-FULL", Cause::TableFull),
            ("tablefull", Cause::TableFull),
            ("chaintoolong", Cause::ChainTooLong),
            ("early_drop", Cause::Evicted),
        ] {
            assert_eq!(cause(text), Ok(meant), "{text}");
        }
        for (near, said) in [("full", "did you mean `table_full`?"), ("evictd", "`evicted`?")] {
            let error = cause(near).unwrap_err();
            assert!(error.contains(said) && error.contains("gc_evicted"), "{near}: {error}");
        }
        assert!(!cause("bad_luck").unwrap_err().contains("did you mean"));
    }

    #[test]
    fn other_names_of_keys_stand_for_one_key_each() {
        let mut all: Vec<&str> =
            SAME_KEYS.iter().flat_map(|(key, names)| [key].into_iter().chain(*names)).copied().collect();
        all.extend(["state", "zone", "mark"]);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
