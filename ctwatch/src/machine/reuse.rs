//! How to reuse connections to a server, as settings of the client's own configuration.
//! Settings only, correct for current versions of the software; whether they help is computed elsewhere.

use serde::{Deserialize, Serialize};

use super::software::Software::{self, *};
use crate::foreign::{Foreign, joined};

/// What to do so that a connection serves more than one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReuseHint {
    /// In a sentence.
    pub what: String,
    /// Lines of configuration or code, each to be understood by itself.
    pub settings: Vec<String>,
}

/// What a server speaks, as far as reuse goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http,
    Redis,
    Memcached,
    Sql,
    Mongo,
    FastCgi,
    Messages,
    Dns,
    Unknown,
}

fn speaks(server: &Software) -> Speaks {
    match server {
        Nginx | NginxLua | OpenResty | Tengine | Apache | Caddy | Traefik | Haproxy | Envoy | Varnish
        | Squid | Elasticsearch | Etcd | Node | Python | Ruby | Java | Go | Dotnet => Speaks::Http,
        Redis => Speaks::Redis,
        Memcached => Speaks::Memcached,
        MySql | PostgreSql | PgBouncer => Speaks::Sql,
        MongoDb => Speaks::Mongo,
        PhpFpm => Speaks::FastCgi,
        Kafka | RabbitMq | ZooKeeper | Cassandra => Speaks::Messages,
        Named | Unbound | Dnsmasq | SystemdResolved | CoreDns => Speaks::Dns,
        Php | DockerProxy | Other(_) => Speaks::Unknown,
    }
}

/// How the clients of a server can reuse their connections; without known clients, what the server can do.
#[must_use]
pub fn reuse_hint(server: &Software, clients: &[Software]) -> ReuseHint {
    let speaks = speaks(server);
    let mut settings: Vec<String> = Vec::new();
    let mut add = |lines: &[&str]| {
        for line in lines {
            if !settings.iter().any(|known| known == line) {
                settings.push((*line).to_owned());
            }
        }
    };
    let what = if speaks == Speaks::Dns {
        add(&dns(server));
        format!(
            "query {server} less often: each UDP query takes an entry; a cache closer to the clients avoids it"
        )
    } else if clients.is_empty() {
        add(&of_server(server, speaks));
        format!("allow clients of {server} to keep connections open, and check that they do")
    } else {
        for client in clients {
            add(&of_client(client, speaks));
        }
        add(&without_network(speaks));
        // Some go by the name that a process gave itself.
        let mut names: Vec<Foreign> = Vec::new();
        for client in clients.iter().map(|client| Foreign::from(client.name())) {
            if !names.contains(&client) {
                names.push(client);
            }
        }
        format!("keep connections from {} to {server} open and reuse them", joined(&names))
    };
    ReuseHint { what, settings }
}

fn of_client(client: &Software, server: Speaks) -> Vec<&'static str> {
    match client {
        NginxLua | OpenResty => nginx_with_lua(server),
        Tengine => [nginx_with_lua(server), nginx(server)].concat(),
        Nginx => nginx(server),
        // A module of Apache's runs PHP in its own processes.
        Apache if !matches!(server, Speaks::Http | Speaks::FastCgi) => php(server),
        PhpFpm | Php => php(server),
        Apache => vec![
            "ProxyPass \"/\" \"http://127.0.0.1:8080/\" enablereuse=on keepalive=on",
            "no `SetEnv proxy-nokeepalive` and no `SetEnv force-proxy-request-1.0`",
        ],
        Haproxy => vec![
            "http-reuse always",
            "option http-keep-alive (and no `option httpclose` or `option http-server-close`)",
            "pool-max-conn -1 and pool-purge-delay 60s on the server line",
        ],
        Envoy => vec![
            "no `max_requests_per_connection: 1` in the cluster's common_http_protocol_options",
            "common_http_protocol_options: { idle_timeout: 3600s } in the cluster, shorter than the server's own",
        ],
        Traefik => vec!["serversTransport: maxIdleConnsPerHost: 200 (-1 turns reuse off)"],
        Caddy => {
            vec!["transport http { keepalive 2m; keepalive_idle_conns_per_host 32 }, and not `keepalive off`"]
        }
        Java => java(server),
        Python => python(server),
        Node => node(server),
        Go => go(server),
        Ruby => match server {
            Speaks::Redis => vec![
                "ConnectionPool.new(size: 5) { Redis.new } once per process, not Redis.new for each request",
            ],
            Speaks::Sql => vec!["database.yml: pool: 5 (no establish_connection in a request)"],
            _ => vec!["Net::HTTP::Persistent.new once per process instead of Net::HTTP.get"],
        },
        Dotnet => match server {
            Speaks::Sql => vec!["Pooling=true;Max Pool Size=100 in the connection string"],
            Speaks::Redis => vec!["one shared ConnectionMultiplexer per process"],
            _ => {
                vec!["one shared HttpClient, or IHttpClientFactory; not `new HttpClient()` for each request"]
            }
        },
        _ => vec![
            "one connection pool per process: open at start, return after use, idle time shorter than the server's",
        ],
    }
}

fn nginx_with_lua(server: Speaks) -> Vec<&'static str> {
    const CODE_CACHE: &str =
        "lua_code_cache on; (off gives each request a new Lua VM, and with it an empty pool)";
    match server {
        Speaks::Redis => vec![
            "red:set_keepalive(10000, 100) instead of red:close(), after each use (idle ms; connections per worker)",
            CODE_CACHE,
        ],
        Speaks::Memcached => {
            vec!["memc:set_keepalive(10000, 100) instead of memc:close(), after each use", CODE_CACHE]
        }
        Speaks::Sql | Speaks::Mongo => {
            vec!["db:set_keepalive(10000, 100) instead of db:close(), after each use", CODE_CACHE]
        }
        Speaks::Http => {
            let mut lines = vec![
                "httpc:set_keepalive(10000, 100) instead of httpc:close(), once the body is read",
                CODE_CACHE,
            ];
            lines.extend(nginx(server));
            lines
        }
        Speaks::FastCgi => nginx(server),
        Speaks::Messages | Speaks::Dns | Speaks::Unknown => {
            vec!["sock:setkeepalive(10000, 100) instead of sock:close(), after each use", CODE_CACHE]
        }
    }
}

fn nginx(server: Speaks) -> Vec<&'static str> {
    match server {
        Speaks::FastCgi => {
            vec!["upstream php { server 127.0.0.1:9000; keepalive 8; }", "fastcgi_keep_conn on;"]
        }
        Speaks::Memcached => {
            vec!["upstream cache { server 127.0.0.1:11211; keepalive 32; }, and memcached_pass to that name"]
        }
        _ => vec![
            "upstream app { server 127.0.0.1:8080; keepalive 32; }, and proxy_pass to that name",
            "proxy_http_version 1.1;",
            "proxy_set_header Connection \"\";",
            "(from nginx 1.29.7 on, all three are defaults of an upstream block: look for `keepalive 0` or a custom Connection header)",
        ],
    }
}

fn php(server: Speaks) -> Vec<&'static str> {
    match server {
        Speaks::Redis => vec![
            "$redis->pconnect('127.0.0.1', 6379) instead of connect()",
            "redis.pconnect.pooling_enabled=1 (the default since phpredis 5.0)",
            "Predis: ['persistent' => true]",
        ],
        Speaks::Memcached => vec![
            "new Memcached('pool') with a name makes it persistent; add servers only if getServerList() is empty",
        ],
        Speaks::Sql => vec![
            "PDO: [PDO::ATTR_PERSISTENT => true]",
            "mysqli: 'p:127.0.0.1' as the host",
            "pm.max_children limits the connections",
        ],
        Speaks::Http => vec![
            "PHP 8.5: curl_share_init_persistent([CURL_LOCK_DATA_CONNECT]); before, a local proxy that keeps its connections",
        ],
        _ => vec!["pfsockopen() instead of fsockopen()"],
    }
}

fn java(server: Speaks) -> Vec<&'static str> {
    match server {
        Speaks::Redis => vec![
            "Jedis: one JedisPooled per process (pool of 8 by default: setMaxTotal, setMaxIdle alike); Lettuce: one shared connection",
        ],
        Speaks::Sql => vec![
            "HikariCP: maximumPoolSize 10, maxLifetime shorter than the server's wait_timeout; not DriverManager for each query",
        ],
        Speaks::Http => vec![
            "one shared java.net.http.HttpClient, or a PoolingHttpClientConnectionManager with setDefaultMaxPerRoute (5 by default)",
            "read each response to its end, or its connection isn't reused",
        ],
        _ => vec!["one client per process, shared by its threads"],
    }
}

fn python(server: Speaks) -> Vec<&'static str> {
    match server {
        Speaks::Redis => vec![
            "one redis.Redis(connection_pool=redis.ConnectionPool(max_connections=50)) per process, not one for each request",
        ],
        Speaks::Sql => vec![
            "Django: CONN_MAX_AGE = 60 (0, the default, closes after each request)",
            "SQLAlchemy: one create_engine(pool_size=5) per process, not NullPool",
        ],
        Speaks::Http => {
            vec!["one requests.Session() or httpx.Client() per process instead of requests.get()"]
        }
        Speaks::Mongo => vec!["one MongoClient per process: it is a pool"],
        _ => vec!["one client per process, not one for each request"],
    }
}

fn node(server: Speaks) -> Vec<&'static str> {
    match server {
        Speaks::Redis => vec!["one client per process, created and connected at its start"],
        Speaks::Sql => vec![
            "mysql2: createPool(), pg: new Pool(), instead of createConnection() and new Client() for each query",
        ],
        Speaks::Http => vec![
            "new http.Agent({ keepAlive: true }) passed to each request (the global agent does so since Node 19)",
        ],
        _ => vec!["one client per process, not one for each request"],
    }
}

fn go(server: Speaks) -> Vec<&'static str> {
    match server {
        Speaks::Redis => vec!["one redis.NewClient per process (go-redis: PoolSize is 10 per CPU)"],
        Speaks::Sql => {
            vec!["one sql.DB per process: db.SetMaxIdleConns(50) (2 by default) as large as SetMaxOpenConns"]
        }
        _ => vec![
            "&http.Transport{MaxIdleConnsPerHost: 100} (2 by default), one http.Client per process",
            "read each response body to its end, then close it, or its connection isn't reused",
        ],
    }
}

/// Between programs of one host.
fn without_network(server: Speaks) -> Vec<&'static str> {
    match server {
        Speaks::Redis => {
            vec![
                "or a Unix socket, which conntrack never sees: unixsocket /run/redis/redis.sock in redis.conf",
            ]
        }
        Speaks::Memcached => {
            vec!["or a Unix socket, which conntrack never sees: memcached -s /run/memcached/memcached.sock"]
        }
        Speaks::Sql => vec![
            "or the server's Unix socket, which conntrack never sees: `localhost` or the socket's path as the host",
        ],
        Speaks::FastCgi => {
            vec!["or a Unix socket, which conntrack never sees: listen = /run/php/php-fpm.sock"]
        }
        _ => Vec::new(),
    }
}

fn of_server(server: &Software, speaks: Speaks) -> Vec<&'static str> {
    match server {
        Nginx | NginxLua | OpenResty | Tengine => vec![
            "keepalive_timeout 75s; keepalive_requests 1000; (both the default: look for a 0)",
            "look for clients that send `Connection: close`, above all load balancers and health checks",
        ],
        Apache => vec!["KeepAlive On", "KeepAliveTimeout 5", "MaxKeepAliveRequests 0"],
        Haproxy => vec!["option http-keep-alive (and no `option httpclose`)", "timeout http-keep-alive 10s"],
        Node => {
            vec!["server.keepAliveTimeout = 75000 (5000 by default; longer than that of the proxy in front)"]
        }
        Redis => vec![
            "timeout 0 in redis.conf, so that pooled connections stay open",
            "pools in the clients (set_keepalive, pconnect, JedisPooled)",
        ],
        MySql => vec!["pools in the clients; wait_timeout longer than they keep a connection idle"],
        PostgreSql => vec!["pools in the clients, or PgBouncer on their host"],
        _ => match speaks {
            Speaks::Http => {
                vec!["HTTP keep-alive on, with an idle timeout longer than that of the proxy in front"]
            }
            Speaks::Messages => {
                vec!["one long-lived connection per client process, with channels or sessions inside"]
            }
            _ => vec!["an idle timeout long enough for pools in the clients"],
        },
    }
}

fn dns(server: &Software) -> Vec<&'static str> {
    let mut lines = match server {
        SystemdResolved => vec![
            "Cache=yes in resolved.conf",
            "hosts: files resolve [!UNAVAIL=return] dns in nsswitch.conf: programs then resolve without UDP",
        ],
        Dnsmasq => vec!["cache-size=10000"],
        Unbound => vec!["prefetch: yes", "serve-expired: yes"],
        CoreDns => vec![
            "cache 30 in the Corefile",
            "NodeLocal DNSCache: answers on the node and brings its own NOTRACK rules",
        ],
        _ => vec!["a caching resolver on each client host (systemd-resolved, unbound, dnsmasq)"],
    };
    lines.push(
        "options ndots:1 in resolv.conf where names are fully qualified: each search domain adds a query",
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(server: Software, clients: &[Software]) -> String {
        reuse_hint(&server, clients).settings.join("\n")
    }

    #[test]
    fn the_story_s_advice_is_the_story_s_own() {
        let hint = reuse_hint(&Redis, &[NginxLua]);
        assert_eq!(hint.what, "keep connections from nginx+lua to redis open and reuse them");
        let text = hint.settings.join("\n");
        assert!(text.contains("red:set_keepalive(10000, 100) instead of red:close()"), "{text}");
        assert!(text.contains("lua_code_cache on;"), "{text}");
        assert!(text.contains("unixsocket"), "{text}");
    }

    #[test]
    fn the_client_s_configuration_is_what_changes() {
        assert!(settings(Redis, &[PhpFpm]).contains("pconnect"));
        assert!(settings(Redis, &[Java]).contains("JedisPooled"));
        assert!(settings(MySql, &[Java]).contains("maximumPoolSize"));
        assert!(settings(MySql, &[Python]).contains("CONN_MAX_AGE"));
        assert!(settings(Go, &[Nginx]).contains("proxy_set_header Connection \"\";"));
        assert!(settings(PhpFpm, &[Nginx]).contains("fastcgi_keep_conn on;"));
        assert!(settings(Nginx, &[Haproxy]).contains("http-reuse always"));
        assert!(settings(Nginx, &[Go]).contains("MaxIdleConnsPerHost"));
        assert!(settings(Apache, &[]).contains("KeepAlive On"));
        assert!(settings(Dnsmasq, &[PhpFpm]).contains("cache-size"));
    }

    #[test]
    fn clients_of_one_kind_are_advised_once() {
        let one = reuse_hint(&Redis, &[PhpFpm]);
        assert_eq!(reuse_hint(&Redis, &[PhpFpm, PhpFpm]), one);
        let two = reuse_hint(&Redis, &[PhpFpm, Node]);
        assert!(two.settings.len() > one.settings.len());
        assert!(two.what.contains("php-fpm, node"), "{}", two.what);
    }

    #[test]
    fn the_name_that_a_process_gave_itself_is_escaped() {
        let hostile = Other("a\u{1b}[2J\\\n".to_owned());
        let hint = reuse_hint(&hostile, std::slice::from_ref(&hostile));
        let name = r"a\x1b[2J\\\n";
        assert_eq!(hint.what, format!("keep connections from {name} to {name} open and reuse them"));
    }

    #[test]
    fn there_is_something_to_say_for_every_pair() {
        let all = Software::all();
        for server in &all {
            assert!(!reuse_hint(server, &[]).settings.is_empty(), "{server}");
            for client in &all {
                let hint = reuse_hint(server, std::slice::from_ref(client));
                assert!(!hint.settings.is_empty(), "{client} to {server}");
                assert!(hint.settings.iter().all(|line| line.len() <= 140), "{:?}", hint.settings);
            }
        }
    }
}
