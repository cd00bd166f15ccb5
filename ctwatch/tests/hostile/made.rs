//! Recordings that no recorder made, each from one that was.

use std::path::Path;

use rusqlite::{Connection, params};

/// Bytes of the text that every reader once took in.
const LONG: usize = 150 << 20;

/// What is run on the file, and what is said of it then.
pub const SCRIPTS: &[(&str, &str, &str)] = &[
    (
        "a view without an end in a table's place",
        "DROP TABLE notice; CREATE VIEW notice AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) \
         SELECT id, 1 AS run, 1 AS wall_us, 1 AS mono_us, 'a' AS code, 'b' AS text, 1 AS crc FROM n",
        "\"notice\"",
    ),
    (
        "a view that multiplies",
        "ALTER TABLE tick RENAME TO t; CREATE VIEW tick AS SELECT a.* FROM t a, t b, t c, t d",
        "\"t",
    ),
    (
        "a view that takes memory",
        "DROP TABLE setting; CREATE VIEW setting AS SELECT 1 AS id, 1 AS run, 1 AS wall_us, 1 AS mono_us, \
         hex(zeroblob(900000000)) AS name, '' AS value, '' AS before, 1 AS crc",
        "\"setting\"",
    ),
    ("a view more", "CREATE VIEW more AS SELECT randomblob(1000000000)", "\"more\""),
    ("a trigger", "CREATE TRIGGER more AFTER INSERT ON run BEGIN DELETE FROM tick; END", "trigger"),
    ("a generated column", "ALTER TABLE notice ADD COLUMN more AS (hex(zeroblob(100000000)))", "\"notice\""),
    ("a column more", "ALTER TABLE tick ADD COLUMN more TEXT", "\"tick\""),
    ("a default that runs", "CREATE TABLE more (a DEFAULT (randomblob(1000000)))", "\"more\""),
    ("a check", "CREATE TABLE more (a CHECK (abs(a) > 1))", "\"more\""),
    ("an index over an expression", "CREATE INDEX more ON tick (hex(zeroblob(1000)))", "index"),
    ("a partial index", "CREATE INDEX more ON tick (id) WHERE id > 1", "index"),
    ("a virtual table", "CREATE VIRTUAL TABLE more USING fts5(a)", "more"),
    ("statistics that mislead", "ANALYZE; UPDATE sqlite_stat1 SET stat = '1 1'", "sqlite_stat"),
    (
        "a table without its key",
        "DROP TABLE tick_loss; CREATE TABLE tick_loss (tick, slot, losses)",
        "tick_loss",
    ),
    ("a table less", "DROP TABLE census", "no table census"),
    ("text for numbers", "UPDATE tick SET wall_us = 'long ago' WHERE id = 3", "damaged"),
    ("a number that is none", "UPDATE tick SET interval_us = 9e999 WHERE id = 3", "damaged"),
    ("text that is none", "UPDATE run SET host = CAST(x'FFFE' AS TEXT)", "damaged"),
];

/// What takes a program: what it is, and what is said of it then.
pub const PROGRAMS: &[(&str, &str)] = &[
    ("a long host name", "damaged"),
    ("a long notice", "damaged"),
    ("a long setting", "damaged"),
    ("a long name of a netns", "damaged"),
    ("long facts", ""),
    ("a long listing", ""),
    ("a long rule set", ""),
    ("a long incident", "damaged"),
    ("a long event", ""),
    ("many tables", "tables"),
    ("many runs", "damaged"),
    ("many notices", "damaged"),
    ("many names", "damaged"),
    ("pages that are shared", ""),
    ("deep JSON", "damaged"),
    ("wide JSON", "damaged"),
    ("wide facts", ""),
];

/// Changes a recording into one of [`PROGRAMS`].
pub fn change(path: &Path, what: &str) {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF")
        .unwrap();
    let long = |sql: &str| {
        let changed = connection.execute(sql, [LONG as i64]).unwrap();
        assert!(changed > 0, "{what}");
    };
    const TEXT: &str = "CAST(replace(hex(zeroblob(?1 / 2)), '00', 'aa') AS TEXT)";
    let many = |sql: &str, times: i64| {
        let with = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1000 + ?1) {sql}"
        );
        connection.execute(&with, [times]).unwrap();
    };
    match what {
        "a long host name" => long(&format!("UPDATE run SET host = {TEXT}")),
        "a long notice" => long(&format!("UPDATE notice SET text = {TEXT} WHERE id = 1")),
        "a long setting" => long(&format!("UPDATE setting SET value = {TEXT} WHERE id = 1")),
        "a long name of a netns" => long(&format!("UPDATE netns SET name = {TEXT} WHERE id = 1")),
        "long facts" => long(&format!("UPDATE machine SET facts = {TEXT}")),
        "a long listing" => long(&format!("UPDATE listing_phase SET idle = {TEXT}")),
        "a long rule set" => long("UPDATE rules SET rules = zeroblob(?1) WHERE id = 1"),
        "a long incident" => long(&format!("UPDATE incident SET measured = {TEXT}")),
        "a long event" => long(&format!("UPDATE event SET device = {TEXT} WHERE tick = 25")),
        "many tables" => {
            for number in 0..2_000 {
                connection.execute_batch(&format!("CREATE TABLE t{number} (a)")).unwrap();
            }
        }
        "many runs" => many(
            "INSERT INTO run SELECT i, started_us, started_mono_us, NULL, NULL, '', '', backend, NULL, interval_us, 1, hooks, \
             0, 0, 0, 0, 0, 1, crc FROM n, run WHERE run.id = 1",
            300_000,
        ),
        "many notices" => many("INSERT INTO notice SELECT i, 1, 1, 1, 'a', 'b', 1 FROM n", 500_000),
        "many names" => many("INSERT INTO netns SELECT i, 1, i, 1, 1, 'a', NULL, 1 FROM n", 100_000),
        "deep JSON" => {
            connection.execute("UPDATE run SET hooks = ?1", ["[".repeat(60_000)]).unwrap();
        }
        "wide JSON" => {
            connection
                .execute("UPDATE run SET hooks = ?1", [format!("[{}0]", "0,".repeat(1 << 20))])
                .unwrap();
        }
        "wide facts" => {
            let facts = format!("{{\"notes\":[{}\"\"]}}", "\"\",".repeat(1 << 20));
            connection.execute("UPDATE machine SET facts = ?1", params![facts]).unwrap();
        }
        "pages that are shared" => {
            drop(connection);
            share_pages(path);
        }
        other => panic!("{other}"),
    }
}

/// Makes a table's inner page point to one of its leaves as often as it can: what takes kilobytes is read as gigabytes.
fn share_pages(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)
             INSERT INTO notice SELECT i, 1, 1, 1, 'a', hex(zeroblob(300)), 1 FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
    let root: i64 = connection
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'notice'", [], |row| row.get(0))
        .unwrap();
    let size: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap();
    drop(connection);
    let mut bytes = std::fs::read(path).unwrap();
    let (size, at) = (size as usize, (root as usize - 1) * size as usize);
    let page = &mut bytes[at..at + size];
    assert_eq!(page[0], 5, "an inner page of a table");
    let cells = u16::from_be_bytes([page[3], page[4]]);
    assert!(cells > 1, "it has children");
    let place = |page: &[u8], cell: usize| {
        usize::from(u16::from_be_bytes([page[12 + 2 * cell], page[13 + 2 * cell]]))
    };
    // A page that points to itself.
    for cell in 0..usize::from(cells) {
        let at = place(page, cell);
        page[at..at + 4].copy_from_slice(&(root as u32).to_be_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}
