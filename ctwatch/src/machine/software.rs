//! Which server or client software a process is, by its names: advice on reusing connections differs by software.
//! An unknown name is passed on unchanged; versions are not determined.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::foreign::Foreign;
use crate::kernel::roots::Roots;
use crate::process::handle::Process;
use crate::process::procfs;

/// What a process is. As text it is a plain lower-case name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Software {
    Nginx,
    /// nginx with the Lua module loaded.
    NginxLua,
    OpenResty,
    Tengine,
    Apache,
    Caddy,
    Traefik,
    Haproxy,
    Envoy,
    Varnish,
    Squid,
    Redis,
    Memcached,
    /// MySQL or MariaDB.
    MySql,
    PostgreSql,
    PgBouncer,
    MongoDb,
    Cassandra,
    Elasticsearch,
    Etcd,
    ZooKeeper,
    Kafka,
    RabbitMq,
    Named,
    Unbound,
    Dnsmasq,
    SystemdResolved,
    CoreDns,
    PhpFpm,
    Php,
    Java,
    Node,
    Python,
    Ruby,
    /// Any program written in Go that has no name of its own here.
    Go,
    Dotnet,
    DockerProxy,
    /// By its process name.
    Other(String),
}

use Software::{
    Apache, Caddy, Cassandra, CoreDns, Dnsmasq, DockerProxy, Dotnet, Elasticsearch, Envoy, Etcd, Go, Haproxy,
    Java, Kafka, Memcached, MongoDb, MySql, Named, Nginx, NginxLua, Node, OpenResty, Other, PgBouncer, Php,
    PhpFpm, PostgreSql, Python, RabbitMq, Redis, Ruby, Squid, SystemdResolved, Tengine, Traefik, Unbound,
    Varnish, ZooKeeper,
};

/// Name as text, and the process names it goes by. The kernel cuts names after 15 bytes.
const NAMES: &[(Software, &str, &[&str])] = &[
    (Nginx, "nginx", &["nginx"]),
    (NginxLua, "nginx+lua", &[]),
    (OpenResty, "openresty", &["openresty"]),
    (Tengine, "tengine", &["tengine"]),
    (Apache, "apache", &["apache2", "httpd"]),
    (Caddy, "caddy", &["caddy"]),
    (Traefik, "traefik", &["traefik"]),
    (Haproxy, "haproxy", &["haproxy"]),
    (Envoy, "envoy", &["envoy"]),
    (Varnish, "varnish", &["varnishd", "cache-main"]),
    (Squid, "squid", &["squid"]),
    (Redis, "redis", &["redis-server", "redis-sentinel", "valkey-server", "valkey-sentinel", "keydb-server"]),
    (Memcached, "memcached", &["memcached"]),
    (MySql, "mysql", &["mysqld", "mariadbd"]),
    (PostgreSql, "postgresql", &["postgres", "postmaster"]),
    (PgBouncer, "pgbouncer", &["pgbouncer"]),
    (MongoDb, "mongodb", &["mongod", "mongos"]),
    (Cassandra, "cassandra", &[]),
    (Elasticsearch, "elasticsearch", &[]),
    (Etcd, "etcd", &["etcd"]),
    (ZooKeeper, "zookeeper", &[]),
    (Kafka, "kafka", &[]),
    (RabbitMq, "rabbitmq", &["rabbitmq-server"]),
    (Named, "named", &["named"]),
    (Unbound, "unbound", &["unbound"]),
    (Dnsmasq, "dnsmasq", &["dnsmasq"]),
    (SystemdResolved, "systemd-resolved", &["systemd-resolved", "systemd-resolve"]),
    (CoreDns, "coredns", &["coredns"]),
    (PhpFpm, "php-fpm", &["php-fpm"]),
    (Php, "php", &["php", "php-cgi"]),
    (Java, "java", &["java"]),
    (Node, "node", &["node", "nodejs", "bun", "deno"]),
    (Python, "python", &["python", "gunicorn", "uvicorn", "uwsgi", "celery", "hypercorn", "daphne"]),
    (Ruby, "ruby", &["ruby", "puma", "unicorn", "sidekiq", "passenger"]),
    (Go, "go", &[]),
    (Dotnet, "dotnet", &["dotnet"]),
    (DockerProxy, "docker-proxy", &["docker-proxy"]),
];

/// What runs inside a JVM, by a word of its main class.
const JAVA: [(&str, Software); 6] = [
    ("kafka.Kafka", Kafka),
    ("org.apache.zookeeper", ZooKeeper),
    ("CassandraDaemon", Cassandra),
    ("org.elasticsearch", Elasticsearch),
    ("org.opensearch", Elasticsearch),
    ("elasticsearch", Elasticsearch),
];

impl Software {
    /// By the kernel's name for the process, the path of its program, and its arguments.
    #[must_use]
    pub fn of(comm: &str, program: Option<&str>, arguments: &[String]) -> Self {
        let file = program.map(|path| path.rsplit('/').next().unwrap_or(path));
        // The process's name first: redis-server's program is a link to redis-check-rdb in Debian.
        let found = [Some(comm), file].into_iter().flatten().find_map(by_name);
        match found {
            Some(Nginx) if program.is_some_and(|path| path.contains("/openresty/")) => OpenResty,
            Some(Nginx) if program.is_some_and(|path| path.contains("tengine")) => Tengine,
            Some(Java) => {
                let runs = |word: &str| arguments.iter().skip(1).any(|argument| argument.starts_with(word));
                let contains = |word: &str| {
                    arguments
                        .iter()
                        .skip(1)
                        .any(|argument| !argument.starts_with('-') && argument.contains(word))
                };
                let known = JAVA.iter().find(|(word, _)| runs(word) || contains(word));
                known.map_or(Java, |(_, software)| software.clone())
            }
            Some(software) => software,
            None if comm == "beam.smp" && arguments.iter().any(|argument| argument.contains("rabbit")) => {
                RabbitMq
            }
            None => Other(comm.to_owned()),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn name(&self) -> &str {
        if let Other(name) = self {
            return name;
        }
        NAMES.iter().find(|(software, ..)| software == self).map_or("unknown", |(_, name, _)| name)
    }

    /// All that have a name here, and one that has none.
    #[must_use]
    pub fn all() -> Vec<Self> {
        NAMES.iter().map(|(software, ..)| software.clone()).chain([Other("program".to_owned())]).collect()
    }

    /// Whether it answers DNS questions.
    #[must_use]
    pub fn is_dns(&self) -> bool {
        matches!(self, Named | Unbound | Dnsmasq | SystemdResolved | CoreDns)
    }

    /// Whether it is nginx, by whatever name.
    #[must_use]
    pub fn is_nginx(&self) -> bool {
        matches!(self, Nginx | NginxLua | OpenResty | Tengine)
    }
}

/// "nginx" and "nginx: worker" and "php-fpm8.2" and "python3.11" alike.
fn by_name(name: &str) -> Option<Software> {
    let word = name.split([':', ' ', '(']).next().unwrap_or(name);
    let without_version = word.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    let known = |wanted: &str| {
        NAMES.iter().find(|(_, _, names)| names.contains(&wanted)).map(|(software, ..)| software.clone())
    };
    known(word).or_else(|| known(without_version))
}

impl From<Software> for String {
    fn from(software: Software) -> Self {
        software.name().to_owned()
    }
}

impl From<String> for Software {
    fn from(name: String) -> Self {
        let known = NAMES.iter().find(|(_, known, _)| *known == name).map(|(software, ..)| software.clone());
        known.unwrap_or(Other(name))
    }
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Foreign::from(self.name()), f)
    }
}

/// A process and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its number.
    pub pid: u32,
    /// The kernel's name for it.
    pub name: Foreign,
    /// What it is.
    pub software: Software,
}

/// What the process with this number is, if that is still the one that is meant. One whose files don't answer is known by its name
/// alone.
#[must_use]
pub fn identify(
    roots: &Roots,
    pid: u32,
    is_meant: impl Fn(&Process) -> bool + Clone + Send + 'static,
) -> Option<Program> {
    let is_meant_still = is_meant.clone();
    let known = Process::look(roots, pid, move |process| {
        let name = Some(process).filter(|process| is_meant(process))?.name()?;
        let program = process.program();
        let program = program.as_deref().and_then(std::path::Path::to_str);
        let mut software = Software::of(name.raw(), program, &process.arguments());
        if software == Nginx && has_lua(process) {
            software = NginxLua;
        } else if matches!(software, Other(_)) && is_go(process) == Some(true) {
            software = Go;
        }
        Some(Program { pid: process.pid, name, software })
    });
    known.unwrap_or_else(|_| {
        let name = Process::open(roots, pid).ok().filter(is_meant_still)?.name()?;
        let software = Software::of(name.raw(), None, &[]);
        Some(Program { pid, name, software })
    })
}

/// What the process is that sent something a while ago, with this name then; `None` if the number may be another one's by now.
#[must_use]
pub fn identify_sender(roots: &Roots, pid: u32, name: &procfs::Name) -> Option<Program> {
    let started = Process::open(roots, pid).ok()?.started();
    procfs::is_called(roots, pid, name)
        .then(|| identify(roots, pid, move |process| process.started() == started))
        .flatten()
}

/// The value of an option among arguments: "-name value", "--name value" or "--name=value".
#[must_use]
pub fn option<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    arguments.iter().enumerate().find_map(|(at, word)| {
        let rest = word.strip_prefix('-')?.trim_start_matches('-').strip_prefix(name)?;
        if rest.is_empty() { arguments.get(at + 1).map(String::as_str) } else { rest.strip_prefix('=') }
    })
}

/// Lua comes as a module of nginx's, or with a library of LuaJIT.
fn has_lua(process: &Process) -> bool {
    let maps = process.maps();
    let maps = Foreign::from_bytes(&maps).into_raw();
    maps.contains("ngx_http_lua_module") || maps.contains("libluajit")
}

/// The linker of Go writes a note with the build's id in front of everything else.
fn is_go(process: &Process) -> Option<bool> {
    /// Where the go command itself looks for it.
    const FRONT: u64 = 32 << 10;
    let front = process.program_beginning(FRONT).ok()?;
    let mark = b"Go build ID: \"";
    Some(front.windows(mark.len()).any(|bytes| bytes == mark))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, Fixture};
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn is(comm: &str, program: &str, arguments: &[&str], expected: Software) {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(Software::of(comm, Some(program), &arguments), expected);
    }

    #[test]
    fn processes_are_known_by_their_names() {
        is("redis-server", "/usr/bin/redis-check-rdb", &[], Redis);
        is("valkey-server", "/usr/bin/valkey-server", &[], Redis);
        is("php-fpm8.2", "/usr/sbin/php-fpm8.2", &[], PhpFpm);
        is("php-fpm: pool w", "/usr/sbin/php-fpm8.2", &[], PhpFpm);
        is("MainThread", "/usr/bin/node", &["node", "app.js"], Node);
        is("python3.11", "/usr/bin/python3.11", &[], Python);
        is("gunicorn: maste", "/usr/bin/python3.11", &[], Python);
        is("systemd-resolve", "/usr/lib/systemd/systemd-resolved", &[], SystemdResolved);
        is("mariadbd", "/usr/sbin/mariadbd", &[], MySql);
        is("postgres", "/usr/lib/postgresql/15/bin/postgres", &[], PostgreSql);
        is("nginx", "/usr/local/openresty/nginx/sbin/nginx", &[], OpenResty);
        is("nginx", "/opt/tengine/sbin/nginx", &[], Tengine);
        is("beam.smp", "/usr/lib/erlang/erts/bin/beam.smp", &["beam.smp", "-s", "rabbit"], RabbitMq);
        is("payments", "/srv/payments", &[], Other("payments".to_owned()));
    }

    #[test]
    fn what_runs_in_a_java_machine_is_told_by_its_main_class() {
        is("java", "/usr/bin/java", &["java", "-Xmx1G", "kafka.Kafka", "server.properties"], Kafka);
        is(
            "java",
            "/usr/bin/java",
            &["java", "org.apache.zookeeper.server.quorum.QuorumPeerMain"],
            ZooKeeper,
        );
        is("java", "/usr/bin/java", &["java", "-Dlog.dir=/var/log/elasticsearch", "-jar", "shop.jar"], Java);
    }

    #[test]
    fn real_nginx_with_lua_and_redis_are_identified() {
        for (kernel, Fixture { host, .. }) in fixture::kernels() {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(&host.roots.proc).unwrap().flatten() {
                let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
                found.extend(
                    pid.and_then(|pid| identify(&host.roots, pid, |_| true)).map(|program| program.software),
                );
            }
            found.sort();
            assert_eq!(found, [NginxLua, NginxLua, Redis, Other("curl".to_owned())], "{kernel}");
        }
    }

    #[test]
    fn a_go_program_is_known_by_its_build_id() {
        let note = "\u{7f}ELF....Go\0\0Go build ID: \"abc/def\"\n";
        let fixture = Fixture::of(&[
            ("srv/shop", note),
            ("proc/7/comm", "shop\n"),
            ("proc/7/exe", "-> ../../srv/shop"),
            ("proc/8/comm", "shop\n"),
        ]);
        let software = |pid| identify(&fixture.host.roots, pid, |_| true).unwrap().software;
        assert_eq!(software(7), Go);
        assert_eq!(software(8), Other("shop".to_owned()), "its program can't be read");
    }

    proptest! {
        #[test]
        fn software_survives_being_written_and_read(name in "[a-z+:-]{1,15}", index in 0..NAMES.len()) {
            for software in [Software::of(&name, None, &[]), NAMES[index].0.clone()] {
                let text = serde_json::to_string(&software).unwrap();
                let back: Software = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(back.name(), software.name());
            }
        }
    }
}
