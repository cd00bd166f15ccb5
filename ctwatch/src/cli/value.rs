//! Single values of the command line, from text. The errors here complete clap's sentence
//! `invalid value '…' for '--flag <NAME>': `, so they say what a good value looks like.

use std::net::IpAddr;
use std::str::FromStr as _;

use ctwatch_common::Cause;
use ipnet::IpNet;
use jiff::SignedDuration;

use crate::advise::whatif::Changes;
use crate::model::{NetnsId, Protocol};
use crate::record::trigger::Condition;
use crate::state::PortRange;
use crate::state::table::{Dimension, Keys};

/// A network namespace as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsSpec {
    /// The namespace ctwatch itself started in.
    Host,
    /// A name in /run/netns.
    Name(String),
    /// Its inode number.
    Inode(NetnsId),
    /// The one this process is in.
    Pid(u32),
}

/// The shortest interval: a report costs about a millisecond on a busy host.
const SHORTEST: SignedDuration = SignedDuration::from_millis(100);

pub fn ports(text: &str) -> Result<PortRange, String> {
    let number = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("`{text}` is no port; give ports and ranges like 80,6000-6010"))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(format!("the range ends before it starts; did you mean {last}-{first}?"));
    }
    Ok(PortRange { first, last })
}

pub fn cidr(text: &str) -> Result<IpNet, String> {
    let good = "give an address or a network like 10.0.0.0/8 or fd00::/8";
    if let Ok(address) = IpAddr::from_str(text) {
        return Ok(IpNet::from(address));
    }
    let Some((address, prefix)) = text.split_once('/') else { return Err(good.to_owned()) };
    let address = IpAddr::from_str(address).map_err(|_| format!("`{address}` is no address; {good}"))?;
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
    Protocol::from_name(text)
        .or_else(|| text.parse().ok().map(Protocol))
        .ok_or_else(|| "give tcp, udp, icmp, icmpv6, sctp or a number from 0 to 255".to_owned())
}

pub fn cause(text: &str) -> Result<Cause, String> {
    Cause::from_name(text).ok_or_else(|| {
        let names = Cause::ALL.map(Cause::name);
        format!("causes are {}", names.join(", "))
    })
}

pub fn keys(text: &str) -> Result<Keys, String> {
    let key = |name: &str| {
        Dimension::ALL.into_iter().find(|key| key.name() == name).ok_or_else(|| {
            let names = Dimension::ALL.map(Dimension::name);
            format!("`{name}` is no key; keys are {}", names.join(", "))
        })
    };
    match text.split(',').collect::<Vec<_>>().as_slice() {
        [one] => Ok(Keys::one(key(one)?)),
        [first, second] => Keys::two(key(first)?, key(second)?)
            .ok_or_else(|| format!("`{first}` twice crosses nothing; give two different keys or one")),
        _ => Err("two keys can be crossed, not more: port,state".to_owned()),
    }
}

pub fn netns(text: &str) -> Result<NetnsSpec, String> {
    if let Some(pid) = text.strip_prefix("pid:") {
        let pid = pid.parse().map_err(|_| "give a process as pid:1234".to_owned())?;
        return Ok(NetnsSpec::Pid(pid));
    }
    if text == "host" {
        return Ok(NetnsSpec::Host);
    }
    if let Ok(inode) = text.parse() {
        return Ok(NetnsSpec::Inode(NetnsId::from_inode(inode)));
    }
    // A file name in /run/netns (ip-netns(8)); anything else would read outside of it.
    if text.is_empty() || text == "." || text == ".." || text.contains('/') {
        return Err("give host, a name in /run/netns, an inode number or pid:1234".to_owned());
    }
    Ok(NetnsSpec::Name(text.to_owned()))
}

pub fn duration(text: &str) -> Result<SignedDuration, String> {
    let good = "give a time like 500ms, 1s or 2m";
    let duration = SignedDuration::from_str(text).map_err(|_| good.to_owned())?;
    if duration.is_positive() { Ok(duration) } else { Err(format!("it must be longer than nothing; {good}")) }
}

pub fn interval(text: &str) -> Result<SignedDuration, String> {
    let interval = duration(text)?;
    if interval < SHORTEST {
        return Err("the shortest interval is 100ms".to_owned());
    }
    Ok(interval)
}

/// How old something may become: days count, too.
pub fn age(text: &str) -> Result<SignedDuration, String> {
    let good = "give a time like 30s, 5m, 12h or 7d";
    let span = jiff::Span::from_str(text).map_err(|_| good.to_owned())?;
    let age = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| good.to_owned())?;
    if age.is_positive() { Ok(age) } else { Err(format!("it must be longer than nothing; {good}")) }
}

/// The smallest recording: its empty tables take some of it.
const SMALLEST: u64 = 1_000_000;

/// Bytes: "500MB", "2GiB".
pub fn size(text: &str) -> Result<u64, String> {
    let good = "give a size like 500MB, 2GB or 512MiB";
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(good)?;
    let (number, unit) = text.split_at(at);
    let factor = match unit.trim() {
        "kB" | "KB" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return Err(good.to_owned()),
    };
    let bytes = number.parse::<f64>().map_err(|_| good.to_owned())? * factor;
    if bytes < SMALLEST as f64 {
        return Err(format!("less than 1MB keeps nothing worth having; {good}"));
    }
    Ok(bytes as u64)
}

/// `--when`
pub fn condition(text: &str) -> Result<Condition, String> {
    text.parse()
}

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    pub text: String,
    pub words: Vec<String>,
}

/// `--exec`
pub fn words(text: &str) -> Result<Words, String> {
    let words = shlex::split(text).filter(|words| !words.is_empty());
    let words = words.ok_or("give a program and its arguments; a quote may be open")?;
    Ok(Words { text: text.to_owned(), words })
}

/// How long `advise` measures.
pub fn window(text: &str) -> Result<SignedDuration, String> {
    let window = duration(text)?;
    if window < SignedDuration::from_secs(3) {
        return Err("a shorter window than 3s says too little".to_owned());
    }
    Ok(window)
}

/// `--what-if`
pub fn changes(text: &str) -> Result<Changes, String> {
    text.parse()
}

/// `--times`
pub fn times(text: &str) -> Result<f64, String> {
    let times = text.parse::<f64>().ok().filter(|times| times.is_finite() && *times > 0.0);
    times.ok_or_else(|| "write a number above 0, such as 2".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_single_or_ranges() {
        assert_eq!(ports("6379"), Ok(PortRange { first: 6379, last: 6379 }));
        assert_eq!(ports("6000-6010"), Ok(PortRange { first: 6000, last: 6010 }));
        assert!(ports("6010-6000").unwrap_err().contains("6000-6010"));
        for bad in ["", "-", "80-", "65536", "http", "-1"] {
            assert!(ports(bad).is_err(), "{bad}");
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
        assert_eq!(netns("4026531840"), Ok(NetnsSpec::Inode(NetnsId::from_inode(4_026_531_840))));
        assert_eq!(netns("pid:812"), Ok(NetnsSpec::Pid(812)));
        assert_eq!(netns("host"), Ok(NetnsSpec::Host));
        for bad in ["", "..", "../1", "/proc/1/ns/net", "pid:", "pid:x"] {
            assert!(netns(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_need_a_unit_and_an_interval_has_a_floor() {
        assert_eq!(duration("500ms"), Ok(SignedDuration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(SignedDuration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(SignedDuration::from_secs(120)));
        for bad in ["1", "", "0s", "-1s", "s", "1 fortnight"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(interval("99ms").is_err());
        assert!(interval("100ms").is_ok());
    }

    #[test]
    fn ages_know_days_and_sizes_know_units() {
        assert_eq!(age("7d"), Ok(SignedDuration::from_hours(168)));
        assert_eq!(age("90s"), Ok(SignedDuration::from_secs(90)));
        assert_eq!(size("500MB"), Ok(500_000_000));
        assert_eq!(size("1.5GiB"), Ok(1_610_612_736));
        for bad in ["", "7", "0d", "-1d"] {
            assert!(age(bad).is_err(), "{bad}");
        }
        for bad in ["", "500", "MB", "1kB", "5 apples", "1.2.3MB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_is_split_as_a_shell_splits_it() {
        assert_eq!(words("page 'the host' --now").unwrap().words, ["page", "the host", "--now"]);
        assert!(words("").is_err() && words("page 'open").is_err());
    }

    #[test]
    fn one_key_or_two_that_differ() {
        assert_eq!(keys("port"), Ok(Keys::default()));
        assert_eq!(keys("src,mark").unwrap().each().count(), 2);
        assert!(keys("colour").unwrap_err().contains("container"));
        assert!(keys("port,port").unwrap_err().contains("twice"));
        assert!(keys("port,state,src").unwrap_err().contains("not more"));
        assert!(keys("").is_err() && keys("port,").is_err());
    }

    #[test]
    fn protocols_go_by_name_or_number() {
        assert_eq!(protocol("tcp"), Ok(Protocol(6)));
        assert_eq!(protocol("icmpv6"), Ok(Protocol(58)));
        assert_eq!(protocol("112"), Ok(Protocol(112)));
        assert!(protocol("256").is_err());
    }
}
