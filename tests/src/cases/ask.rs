//! Asks for an exemption: ctwatch by its command line, as a user does, or its library, which needs no window.
//! Where a case brings what a tool of another version prints, that is what its `nft` prints here.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ctwatch::firewall::{self, ExemptTarget, ObjectionKind, Scope};
use ctwatch::kernel::roots::Roots;
use ctwatch::model::Protocol;
use serde_json::Value;
use tempfile::TempDir;

use crate::lab::{Piece, Place, Proto, Side};
use crate::shell::run;

/// The shortest window.
const WINDOW: Duration = Duration::from_secs(3);
/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Who answers.
#[derive(Clone, Debug)]
pub enum Asker {
    /// This program.
    Program(PathBuf),
    /// The library in this process.
    Library,
}

/// What is answered.
pub(super) enum Answer {
    Advised { now: Vec<String>, undo: Vec<String>, took: Option<Duration> },
    Refused { reasons: Vec<String>, took: Option<Duration> },
    Nothing { said: String, took: Option<Duration> },
}

impl Answer {
    /// Beyond the window.
    pub(super) fn took(&self) -> Option<Duration> {
        match self {
            Self::Advised { took, .. } | Self::Refused { took, .. } | Self::Nothing { took, .. } => *took,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Advised { .. } => "advised",
            Self::Refused { .. } => "refused",
            Self::Nothing { .. } => "nothing",
        })
    }
}

impl Asker {
    /// The library takes the tools that are there: what another version prints is for the program.
    pub(super) fn can(&self, folder: &Path) -> bool {
        matches!(self, Self::Program(_)) || !OtherNft::is_in(folder)
    }

    pub(super) fn ask(&self, place: &Place, piece: &Piece, folder: &Path) -> Result<Answer> {
        let other_nft = OtherNft::of(folder)?;
        match self {
            Self::Program(program) => {
                place.host().run(|| by_command_line(program, piece, other_nft.as_ref()))
            }
            Self::Library => place.host().run(|| Ok(by_library(piece))),
        }
    }
}

fn by_command_line(program: &Path, piece: &Piece, other_nft: Option<&OtherNft>) -> Result<Answer> {
    let mut command = Command::new(program);
    let (change, window) = (format!("notrack={piece}"), format!("{}s", WINDOW.as_secs()));
    command.args(["advise", "--what-if", &change, "--window", &window, "--format", "json"]);
    if let Some(other) = other_nft {
        command.env("PATH", other.path());
    }
    let (began, shown) = (Instant::now(), format!("{command:?}"));
    let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {shown}"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{shown} did not end within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let took = began.elapsed().saturating_sub(WINDOW);
    let text = |mut file: fs::File| -> Result<String> {
        use std::io::{Read, Seek};
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    let (out, err) = (text(out)?, text(err)?);
    if !status.success() {
        bail!("{shown} ended with {status}: {err}");
    }
    let advice = serde_json::from_str(&out).with_context(|| format!("{shown} printed no JSON: {out}"))?;
    Ok(of_json(&advice, piece, Some(took)))
}

fn of_json(advice: &Value, piece: &Piece, took: Option<Duration>) -> Answer {
    let strings = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(Value::as_str).filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    let change = format!("notrack={piece}");
    let items = advice["items"].as_array().into_iter().flatten();
    let mut items = items.filter(|item| item["kind"] == "notrack" && item["change"] == change.as_str());
    let warnings = strings(&advice["what_if"]["warnings"]);
    let about = warnings.iter().filter_map(|warning| warning.strip_prefix(&format!("{change}: ")));
    let about: Vec<String> =
        about.filter(|text| !text.starts_with("no such flows")).map(str::to_owned).collect();
    match items.next() {
        Some(item) => {
            let now = strings(&item["commands"]["now"]);
            let reasons: Vec<String> = item["refused"].as_array().into_iter().flatten().map(reason).collect();
            match (now.is_empty(), reasons.is_empty()) {
                (false, true) => Answer::Advised { now, undo: strings(&item["commands"]["undo"]), took },
                (true, false) => Answer::Refused { reasons, took },
                (false, false) => Answer::Nothing {
                    said: format!("refused ({}), yet with commands: {}", reasons.join("; "), now.join("; ")),
                    took,
                },
                (true, true) => Answer::Nothing { said: strings(&item["notes"]).join("; "), took },
            }
        }
        None if !about.is_empty() => Answer::Refused { reasons: about, took },
        None => {
            let all = warnings.into_iter().chain(strings(&advice["notes"]));
            Answer::Nothing { said: all.collect::<Vec<_>>().join("; "), took }
        }
    }
}

fn reason(row: &Value) -> String {
    let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    format!("{} [{}]", word("text"), word("rule"))
}

/// The piece as the library knows it.
pub fn target(piece: &Piece) -> ExemptTarget {
    let proto = match piece.proto {
        Proto::Tcp => Protocol::TCP,
        Proto::Udp => Protocol::UDP,
    };
    let scope = match piece.side {
        Side::Loopback => Scope::Loopback,
        Side::In => Scope::Served,
        Side::Out => Scope::Outgoing,
    };
    ExemptTarget { proto, port: piece.port, scope }
}

fn by_library(piece: &Piece) -> Answer {
    let target = target(piece);
    let (firewall, _, notes) = firewall::read(&Roots::default());
    let objections = firewall.objections(&target);
    if objections.iter().any(|one| one.kind == ObjectionKind::AlreadyUntracked) {
        return Answer::Nothing { said: "untracked already".to_owned(), took: None };
    }
    let reasons: Vec<String> = objections
        .iter()
        .filter(|one| one.kind.forbids())
        .map(|one| format!("{} [{}]", one.text, one.located_rule()))
        .chain(notes.iter().map(|note| format!("{}: {}", note.tool, note.text)))
        .collect();
    if reasons.is_empty() {
        let commands = firewall.notrack_commands(&target, firewall.preferred_tool());
        Answer::Advised { now: commands.now, undo: commands.undo, took: None }
    } else {
        Answer::Refused { reasons, took: None }
    }
}

/// A folder with an `nft` that lists rules as a case's files say, and does all else itself.
struct OtherNft(TempDir);

impl OtherNft {
    const FILES: [&str; 3] = ["nft.json", "nft.txt", "nft-j.stderr.txt"];

    fn is_in(folder: &Path) -> bool {
        Self::FILES.iter().any(|name| folder.join(name).is_file())
    }

    fn of(folder: &Path) -> Result<Option<Self>> {
        if !Self::is_in(folder) {
            return Ok(None);
        }
        let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let [json, text, failure] = Self::FILES.map(file);
        let real = run(&["sh", "-c", "command -v nft"])?;
        let made = tempfile::tempdir().context("a folder for another nft")?;
        let absolute = |path: PathBuf| fs::canonicalize(&path).map(|path| path.display().to_string());
        let print = |path: Option<PathBuf>| -> Result<String> {
            Ok(match path {
                Some(path) => format!("cat '{}'; exit 0", absolute(path)?),
                None => "exit 1".to_owned(),
            })
        };
        let fails = match failure {
            Some(path) => format!("cat '{}' >&2; exit 1", absolute(path)?),
            None => print(json.clone())?,
        };
        let version = match &json {
            Some(path) => {
                let listing: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
                let version =
                    listing["nftables"][0]["metainfo"]["version"].as_str().unwrap_or("0.9.8").to_owned();
                format!("echo 'nftables v{version} (E.D.S.)'; exit 0")
            }
            None => "echo 'nftables v1.0.6 (Lester Gooch #5)'; exit 0".to_owned(),
        };
        let script = format!(
            "#!/bin/sh\njson=\nfor word in \"$@\"; do\n case \"$word\" in\n --json|-*j*) json=1;;\n -v|--version) \
             {version};;\n esac\ndone\ncase \"$*\" in\n *list*ruleset*) [ -z \"$json\" ] || {{ {fails}; }}\n {};;\nesac\nexec {} \"$@\"\n",
            print(text)?,
            real.trim()
        );
        let path = made.path().join("nft");
        fs::write(&path, script).context("writing another nft")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Some(Self(made)))
    }

    fn path(&self) -> std::ffi::OsString {
        let mut path = self.0.path().as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_commands_or_reasons_or_nothing() {
        let piece: Piece = "8080/tcp/in".parse().unwrap();
        let with = |now: Value, refused: Value| {
            let item = json!({"kind": "notrack", "change": "notrack=8080/tcp/in",
                "commands": {"now": now, "undo": ["u"]}, "refused": refused});
            of_json(&json!({"items": [item], "what_if": {"warnings": []}}), &piece, None).to_string()
        };
        assert_eq!(with(json!(["# said", "nft x"]), json!([])), "advised");
        assert_eq!(with(json!([]), json!([{"text": "t", "rule": "r"}])), "refused");
        assert_eq!(with(json!(["nft x"]), json!([{"text": "t", "rule": "r"}])), "nothing");
        let warned = |text: &str| {
            of_json(&json!({"items": [], "what_if": {"warnings": [text]}}), &piece, None).to_string()
        };
        assert_eq!(warned("notrack=8080/tcp/in: NAT needs it"), "refused");
        assert_eq!(warned("notrack=8080/tcp/in: no such flows were seen; no effect"), "nothing");
    }
}
