//! What each subcommand does: it joins the watch, the state and a view.
//! No kernel detail and no layout of output belongs here.

mod backend;
pub mod check;
pub mod drops;

use std::io::{BufWriter, stdout};

use crate::cli::Format;
use crate::view::View;
use crate::view::json::JsonView;
use crate::view::text::{Look, TextView};

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The view of a format, on stdout.
fn view(format: Format, look: &Look) -> Box<dyn View> {
    match format {
        Format::Json => Box::new(JsonView::new(stdout())),
        Format::Text => Box::new(TextView::new(BufWriter::new(stdout()), look.clone())),
    }
}
