//! The postmortem as titles, sentences and tables: the same words for text, Markdown and HTML.
//! No layout: each format has its own file for that.

use std::borrow::Cow;

use crate::foreign::harmless;

/// What a format has to lay out.
#[derive(Debug)]
pub(super) struct Document {
    pub title: String,
    /// A sentence for each host.
    pub headlines: Vec<String>,
    /// Side by side, if there is more than one host.
    pub comparison: Option<TextTable>,
    pub hosts: Vec<Chapter>,
}

/// One host.
#[derive(Debug)]
pub(super) struct Chapter {
    pub title: String,
    pub lead: Vec<String>,
    pub sections: Vec<Section>,
}

#[derive(Debug)]
pub(super) struct Section {
    pub title: &'static str,
    pub blocks: Vec<Block>,
}

#[derive(Debug)]
pub(super) enum Block {
    Text(String),
    List(Vec<String>),
    Table(TextTable),
    /// To be copied.
    Code(Vec<String>),
    /// Where HTML has its panels; the table is for the others.
    Plots(TextTable),
}

#[derive(Debug)]
pub(super) struct TextTable {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub name: &'static str,
    pub right: bool,
}

impl Document {
    /// Nothing in it acts on a terminal or hides from the reader: the net below the escapes of names.
    pub fn harmless(mut self) -> Self {
        let all = |texts: &mut Vec<String>| texts.iter_mut().for_each(make_harmless);
        let table = |table: &mut TextTable| table.rows.iter_mut().flatten().for_each(make_harmless);
        make_harmless(&mut self.title);
        all(&mut self.headlines);
        self.comparison.iter_mut().for_each(table);
        for host in &mut self.hosts {
            make_harmless(&mut host.title);
            all(&mut host.lead);
            for block in host.sections.iter_mut().flat_map(|section| &mut section.blocks) {
                match block {
                    Block::Text(text) => make_harmless(text),
                    Block::List(texts) => all(texts),
                    Block::Table(one) | Block::Plots(one) => table(one),
                    // A command has as many lines as it has.
                    Block::Code(commands) => {
                        let lines =
                            |text: &str| text.split('\n').map(harmless).collect::<Vec<_>>().join("\n");
                        commands.iter_mut().for_each(|command| *command = lines(command));
                    }
                }
            }
        }
        self
    }
}

fn make_harmless(text: &mut String) {
    if let Cow::Owned(other) = harmless(text) {
        *text = other;
    }
}

impl TextTable {
    /// Columns by their names; numbers have a `>` in front.
    pub fn new(columns: &[&'static str], rows: Vec<Vec<String>>) -> Self {
        let column = |name: &&'static str| match name.strip_prefix('>') {
            Some(name) => Column { name, right: true },
            None => Column { name, right: false },
        };
        Self { columns: columns.iter().map(column).collect(), rows }
    }
}
