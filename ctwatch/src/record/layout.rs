//! Whether a file has the tables of a recording, as they are in schema.sql, and nothing that would run when they are read:
//! a view in a table's place, a generated column, a trigger, an index over an expression, a virtual table.
//!
//! Compared is the text each was made with, which is what SQLite makes them from: without comments and blanks, it is ours.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::fault::ReadError;
use super::schema;

/// Rows of sqlite_master that a recording can have, with room for the tables of later versions.
const ENTRIES: usize = 256;
/// The longest text of a table.
const TEXT: usize = 16 << 10;
/// What the view `drops` lacked before there were these hooks, newest first.
const LATER_HOOKS: [&str; 2] = [
    " WHEN 19 THEN 'bridge'",
    " WHEN 16 THEN 'openvswitch' WHEN 17 THEN 'tc_ingress' WHEN 18 THEN 'tc_egress'",
];
/// Words by which a column runs something.
const RUNS: [&str; 8] = ["as", "check", "collate", "default", "generated", "virtual", "using", "select"];

/// A table or a view: its text, and whether every file has it.
struct Known {
    kind: &'static str,
    texts: Vec<String>,
    always: bool,
}

static KNOWN: LazyLock<BTreeMap<String, Known>> = LazyLock::new(|| {
    let of = |text: &str, always: bool| statements(text).into_iter().map(move |one| (one, always));
    let all: Vec<_> = of(schema::TABLES, true).chain(of(schema::LATER, false)).collect();
    let known = all.into_iter().filter_map(|(text, always)| {
        let text = text.replace("CREATE TABLE IF NOT EXISTS ", "CREATE TABLE ");
        let (kind, rest) = match text.split_at_checked("CREATE VIEW ".len()) {
            Some(("CREATE VIEW ", rest)) => ("view", rest),
            _ => ("table", text.strip_prefix("CREATE TABLE ")?),
        };
        let name = rest.split([' ', '(']).next()?.to_owned();
        let mut texts = vec![text];
        for hooks in LATER_HOOKS {
            let former = texts[texts.len() - 1].replace(&format!(" {}", plain(hooks)), "");
            texts.push(former);
        }
        Some((name, Known { kind, texts, always: always && kind == "table" }))
    });
    known.collect()
});

/// Refuses anything but a recording's tables and views, and plain tables that a later version may have added.
pub(super) fn examine(connection: &Connection) -> Result<(), ReadError> {
    let odd = |what: String| Err(ReadError::Corrupt(format!("{what}, which no recorder makes")));
    let mut statement =
        connection.prepare("SELECT type AS kind, name AS name, sql AS sql FROM sqlite_master")?;
    let mut rows = statement.query([])?;
    let (mut seen, mut entries) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        entries += 1;
        if entries > ENTRIES {
            return odd(format!("it has more than {ENTRIES} tables and indexes"));
        }
        let text = |column: &str| match row.get_ref(column)? {
            ValueRef::Text(text) if text.len() <= TEXT => Ok(str::from_utf8(text).ok()),
            _ => Ok::<_, rusqlite::Error>(None),
        };
        let (Some(kind), Some(name)) = (text("kind")?, text("name")?) else {
            return odd("an entry of its schema is no text".to_owned());
        };
        // What UNIQUE and PRIMARY KEY make.
        if kind == "index" && name.starts_with("sqlite_autoindex_") && row.get_ref("sql")? == ValueRef::Null {
            continue;
        }
        let shown: String = name.chars().take(64).collect();
        let Some(sql) = text("sql")?.map(plain) else {
            return odd(format!("it has the {kind} {shown:?}"));
        };
        match KNOWN.get(name) {
            Some(known) => {
                if known.kind != kind || !known.texts.contains(&sql) {
                    let what = format!("its {kind} {shown:?} differs from the one that a recorder makes");
                    return Err(ReadError::Corrupt(what));
                }
                seen.push(name.to_owned());
            }
            None if kind == "table" && is_plain_table(name, &sql) => {}
            None => return odd(format!("it has the {kind} {shown:?}")),
        }
    }
    match KNOWN.iter().find(|(name, known)| known.always && !seen.contains(name)) {
        Some((name, _)) => Err(ReadError::Corrupt(format!("it has no table {name}"))),
        None => Ok(()),
    }
}

/// A table of a later version: columns with types and references, nothing that runs.
fn is_plain_table(name: &str, sql: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = !name.is_empty() && name.chars().all(is_word) && !name.starts_with("sqlite_");
    let mut words = sql.split(|c: char| !is_word(c)).filter(|word| !word.is_empty());
    is_name
        && sql
            .strip_prefix("CREATE TABLE ")
            .is_some_and(|rest| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(['(', ' '])))
        && sql.chars().all(|c| is_word(c) || matches!(c, ' ' | ',' | '(' | ')'))
        && !words.any(|word| RUNS.contains(&word.to_ascii_lowercase().as_str()))
}

/// Statements of a script that has no semicolon in its texts.
fn statements(script: &str) -> Vec<String> {
    let script = without_comments(script);
    script.split(';').map(plain).filter(|one| !one.is_empty()).collect()
}

/// Without comments, and with one blank where there are any between two words.
fn plain(sql: &str) -> String {
    let sql = without_comments(sql);
    let mut plain = String::with_capacity(sql.len());
    let (mut quoted, mut blank) = (false, false);
    for c in sql.chars() {
        quoted ^= c == '\'';
        if !quoted && c.is_ascii_whitespace() {
            blank = true;
            continue;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '\'' | '"');
        if blank && plain.chars().next_back().is_some_and(is_word) && (is_word(c) || c == '(') {
            plain.push(' ');
        }
        blank = false;
        plain.push(c);
    }
    plain
}

/// Without `-- …`. A quote in a comment would be one without: texts of ours have none, and another text is refused anyway.
fn without_comments(sql: &str) -> String {
    let line = |line: &str| line.split("--").next().unwrap_or_default().to_owned();
    sql.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::lay_out(&mut connection, "0.1.0", "now").unwrap();
        connection
    }

    fn refused(script: &str) -> String {
        let connection = laid_out();
        connection.execute_batch(script).unwrap_or_else(|error| panic!("{script}: {error}"));
        match examine(&connection) {
            Err(ReadError::Corrupt(what)) => what,
            other => panic!("{script}: {other:?}"),
        }
    }

    #[test]
    fn what_we_lay_out_is_known() {
        examine(&laid_out()).unwrap();
        assert!(
            KNOWN.len() > 20
                && KNOWN["tick"].always
                && !KNOWN["rules"].always
                && KNOWN["fills"].kind == "view"
        );
    }

    #[test]
    fn a_file_from_before_some_tables_and_one_with_tables_to_come_are_read() {
        let connection = laid_out();
        connection
            .execute_batch(
                "DROP TABLE rules; DROP TABLE netns_setting; DROP VIEW losses;
                CREATE TABLE weather (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run, -- sunny
                  sky TEXT, UNIQUE (run, sky));
                CREATE TABLE place (a, b TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID",
            )
            .unwrap();
        examine(&connection).unwrap();
    }

    #[test]
    fn the_view_as_it_was_before_passes() {
        let connection = laid_out();
        let sql: String = connection
            .query_row("SELECT sql FROM sqlite_master WHERE name = 'drops'", [], |row| row.get(0))
            .unwrap();
        let mut former = sql;
        for hooks in LATER_HOOKS {
            assert!(former.contains(hooks));
            former = former.replace(hooks, "");
            connection.execute_batch(&format!("DROP VIEW drops; {former}")).unwrap();
            examine(&connection).unwrap();
        }
    }

    #[test]
    fn whatever_would_run_is_refused() {
        for (script, what) in [
            ("DROP TABLE notice; CREATE VIEW notice AS SELECT 1 AS id", "notice"),
            ("CREATE VIEW more AS SELECT 1", "more"),
            ("DROP VIEW drops; CREATE VIEW drops AS SELECT 1", "drops"),
            ("CREATE TRIGGER t AFTER INSERT ON tick BEGIN SELECT 1; END", "trigger"),
            ("CREATE INDEX i ON tick (abs(id))", "index"),
            ("CREATE INDEX i ON tick (id) WHERE id > 3", "index"),
            ("CREATE INDEX i ON tick (run)", "index"),
            ("CREATE VIRTUAL TABLE v USING fts5(a)", "\"v\""),
            ("CREATE VIRTUAL TABLE v USING rtree(a, b, c)", "\"v\""),
            ("CREATE TABLE t (a, b AS (a + 1))", "\"t\""),
            ("CREATE TABLE t (a GENERATED ALWAYS AS (abs(1)) STORED, b)", "\"t\""),
            ("CREATE TABLE t (a CHECK (a > 1))", "\"t\""),
            ("CREATE TABLE t (a DEFAULT (random()))", "\"t\""),
            ("CREATE TABLE t (a COLLATE nocase)", "\"t\""),
            ("CREATE TABLE \"t t\" (a)", "t t"),
            ("ALTER TABLE notice ADD COLUMN more AS (id + 1)", "notice"),
            ("ALTER TABLE notice ADD COLUMN more INTEGER", "notice"),
            ("DROP TABLE tick_loss; CREATE TABLE tick_loss (tick, slot, losses)", "tick_loss"),
            ("DROP TABLE tick_loss", "tick_loss"),
            ("ANALYZE", "sqlite_stat1"),
        ] {
            let told = refused(script);
            assert!(told.contains(what), "{script}: {told}");
        }
    }
}
