//! The HTML report in a real browser: light, dark and on paper, without a script and without anything from elsewhere.
//! It opens the page that the unit tests pin, and leaves the pictures to be looked at.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::{apt, sh, workspace};

/// What `ctwatch report` makes of the night that its tests record.
const PAGE: &str = "ctwatch/tests/reports/golden/postmortem.html";
/// So many panels it has.
const PANELS: usize = 5;
/// Widths it is read at: a desk's and a phone's, with heights that hold all of it.
const SIZES: [(u32, u32); 2] = [(1280, 4600), (400, 7600)];
/// A page that shows its tables and panels makes a picture of so many bytes at least.
const PICTURE: u64 = 50_000;

/// Runs `cargo xtask browser`.
pub fn run() -> Result<ExitCode> {
    open()?;
    Ok(ExitCode::SUCCESS)
}

/// Opens the page in all ways it is read; an error says what doesn't hold.
pub fn open() -> Result<()> {
    apt::install_on_host(&["chromium", "fonts-dejavu-core"], "opening the report in a browser")?;
    let page = workspace::root().join(PAGE);
    let folder = workspace::target().join("report");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for (width, height) in SIZES {
        // Blink's enum: 0 is dark, 1 is light.
        let [light, dark] = [("light", 1), ("dark", 0)].map(|(name, scheme)| {
            let picture = folder.join(format!("{name}-{width}.png"));
            let flags = [
                format!("--blink-settings=preferredColorScheme={scheme}"),
                format!("--window-size={width},{height}"),
                format!("--screenshot={}", picture.display()),
            ];
            browse(&folder, &page, &flags).map(|_| picture)
        });
        let (light, dark) = (light?, dark?);
        for picture in [&light, &dark] {
            let size = size(picture)?;
            ensure!(size >= PICTURE, "{} has only {size} bytes: the page looks empty", picture.display());
        }
        ensure!(fs::read(&light)? != fs::read(&dark)?, "light and dark look the same");
    }
    let paper = folder.join("paper.pdf");
    browse(&folder, &page, &[format!("--print-to-pdf={}", paper.display())])?;
    ensure!(fs::read(&paper)?.starts_with(b"%PDF"), "{} is no PDF", paper.display());
    let dom = browse(&folder, &page, &["--dump-dom".to_owned()])?;
    let panels = dom.matches("</svg>").count();
    ensure!(panels == PANELS, "the browser found {panels} panels of {PANELS}");
    ensure!(!dom.contains("parsererror"), "the browser can't parse the page");
    println!("{} was read in light, dark and on paper; look at {}", page.display(), folder.display());
    Ok(())
}

/// Starts the browser once; returns what it prints. What the page's policy forbids is an error.
fn browse(folder: &Path, page: &Path, flags: &[String]) -> Result<String> {
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--enable-logging=stderr",
    ]);
    command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
    if sh::is_root() {
        // Its sandbox refuses root; the page is ours.
        command.arg("--no-sandbox");
    }
    command.args(flags).arg(format!("file://{}", page.display()));
    let output = sh::die_with_parent(&mut command).output().context("starting chromium")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "chromium failed ({}):\n{said}", output.status);
    let complaint = said.lines().find(|line| line.contains("CONSOLE"));
    ensure!(complaint.is_none(), "the browser complains: {}", complaint.unwrap_or_default());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("looking for {}", path.display()))?.len())
}
