//! Precedence, secrets, and the table of keys in its other forms.

use std::collections::{BTreeMap, BTreeSet};

use towpath_core::backend::Descriptor;

use super::*;
use crate::wiring;

/// The embedded row alone, so that these tests say the same whatever else is built in.
const EMBEDDED: &[Descriptor] = &[row(&wiring::BACKENDS[0])];

/// A build with one backend more: its row in the table is all that the configuration needs.
const WITH_REDIS: &[Descriptor] = &[
    row(&wiring::BACKENDS[0]),
    Descriptor {
        name: "redis",
        schemes: &["redis", "rediss"],
        capabilities: &[],
        parameters: &[],
        check: |_| Ok(()),
        open: |_, _| Box::pin(std::future::pending()),
    },
];

const fn row(like: &Descriptor) -> Descriptor {
    Descriptor {
        name: like.name,
        schemes: like.schemes,
        capabilities: like.capabilities,
        parameters: like.parameters,
        check: like.check,
        open: like.open,
    }
}

pub(super) fn sources(file: &str, env: &[(&str, &str)]) -> Sources {
    Sources {
        file: Some(("towpath.toml".to_owned(), file.to_owned())),
        env: env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        unreadable: BTreeSet::new(),
        folder: OfFolder::default(),
        warnings: Vec::new(),
        apps: None,
        flags: Vec::new(),
        stores: Stores {
            backends: EMBEDDED,
            databases: wiring::STORES.databases,
        },
    }
}

fn queue(sources: &Sources) -> String {
    load(sources).unwrap().config.queue
}

#[test]
fn the_nearest_word_wins() {
    let mut all = sources("", &[]);
    assert_eq!(queue(&all), "messages");
    all.file = Some((
        "towpath.toml".to_owned(),
        "[ingest]\nqueue = \"file\"".to_owned(),
    ));
    assert_eq!(queue(&all), "file");
    all.env
        .insert("QUEUE_NAME".to_owned(), " reference ".to_owned());
    assert_eq!(queue(&all), "reference");
    all.env
        .insert("TOWPATH_INGEST__QUEUE".to_owned(), "variable".to_owned());
    assert_eq!(queue(&all), "variable");
    all.flags.push((
        "ingest.queue".to_owned(),
        "flag".to_owned(),
        "--set".to_owned(),
    ));
    assert_eq!(queue(&all), "flag");
    let origins: BTreeMap<String, String> = origins_table(&load(&all).unwrap())
        .into_iter()
        .map(|[key, _, origin]| (key, origin))
        .collect();
    assert_eq!(
        (
            origins["ingest.queue"].as_str(),
            origins["server.listen"].as_str()
        ),
        ("--set", "default")
    );
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let empty = [
        ("QUEUE_NAME", ""),
        ("TOWPATH_INGEST__QUEUE", ""),
        ("PORT", " "),
    ];
    let loaded = load(&sources("", &empty)).unwrap();
    assert_eq!(
        (loaded.config.queue.as_str(), loaded.config.listen.as_str()),
        ("messages", ":8080")
    );
}

#[test]
fn listens_on_loopback_unless_an_address_is_configured() {
    for (variables, expected) in [
        (&[][..], "127.0.0.1:8080"),
        (&[("HTTP_ADDR", ":8080")], ":8080"),
        (&[("PORT", "9000")], ":9000"),
        (&[("TOWPATH_SERVER__LISTEN", "10.0.0.1:80")], "10.0.0.1:80"),
    ] {
        let mut loaded = load(&sources("", variables)).unwrap();
        loaded.listen_on_loopback();
        assert_eq!(loaded.config.listen, expected, "{variables:?}");
    }
}

#[test]
fn reference_variables_keep_their_meaning() {
    let loaded = load(&sources(
        "",
        &[
            ("PORT", "9000"),
            ("PROCESSING_DELAY_MS", "250"),
            ("OUTPUT_PATH", "/x/y"),
        ],
    ))
    .unwrap();
    assert_eq!(loaded.config.listen, ":9000");
    assert_eq!(loaded.config.processing_delay.as_millis(), 250);
    assert_eq!(loaded.config.output_path().to_str(), Some("/x/y"));
    let loaded = load(&sources(
        "",
        &[
            ("PORT", "9000"),
            ("HTTP_ADDR", ":9001"),
            ("PROCESSING_DELAY_MS", "soon"),
        ],
    ))
    .unwrap();
    assert_eq!(
        (
            loaded.config.listen.as_str(),
            loaded.config.processing_delay.as_millis()
        ),
        (":9001", 0)
    );
    assert_eq!(loaded.warnings.len(), 2, "{:?}", loaded.warnings);
}

#[test]
fn variables_stand_in_the_file() {
    let file = "[ingest]\nqueue = \"${STAGE}-${NAME:-jobs}\"";
    assert_eq!(queue(&sources(file, &[("STAGE", "test")])), "test-jobs");
}

#[test]
fn secrets_are_never_shown() {
    let secret = [("TOWPATH_INGEST__WORKER__WEBHOOK__SECRET", "whsec_aGVsbG8=")];
    let mut sources = sources(
        "[backends]\ndefault = \"redis://me:geheim@host/0\"\n[ingest.worker.webhook]\nurl = \"https://me:geheim@x/\"",
        &secret,
    );
    sources.stores.backends = WITH_REDIS;
    let loaded = load(&sources).unwrap();
    let shown = format!(
        "{:?} {loaded:?} {:?}",
        origins_table(&loaded),
        loaded.config
    );
    assert!(
        !shown.contains("whsec_") && !shown.contains("geheim"),
        "{shown}"
    );
    assert!(shown.contains("redis://me:***@host/0"), "{shown}");
}

#[test]
fn problems_hide_possible_secrets() {
    for file in [
        "[ingest.worker.webhook]\nsecret = [\"whsec_geheim\"]",
        "[ingest.worker.webhook]\nsecret = \"whsec_geheim",
        "[fleet]\napi_keys = \"geheim",
        "[fleet]\napi_keyz = \"geheim\"",
        "[fleet]\napi_keys = [\"geheim\", 3]",
        "[ingest.worker.webhook]\nurl = \"htps://h/geheim\"",
        "[ingest.worker.webhook]\nurl = \"https://h/geheim\" x",
        "[ingest]\nworker = { webhook = { url = \"htps://h/geheim\" } }",
        "[traces]\nheaders = [\"authorization geheim",
        "[ingest.worker.command]\nprogramm = [\"curl\", \"geheim\"]",
        "[backends]\ndefalt = \"redis://me:geheim@h/0\"",
    ] {
        let problems = load(&sources(file, &[])).unwrap_err().to_string();
        assert!(
            !problems.contains("geheim") && problems.contains("towpath.toml:2:"),
            "{problems}"
        );
    }
    let env = [(
        "TOWPATH_BACKENDS__DEFAULT",
        "amqp://a:geheim@x,amqp://b:ge@h,eim@y\u{7}",
    )];
    let problems = load(&sources("", &env)).unwrap_err().to_string();
    assert!(
        !problems.contains("geheim") && !problems.contains("eim@"),
        "{problems}"
    );
    // A value that goes over several lines, and variables.
    let lines = "[fleet]\napi_keys = [\n  \"geheim\",\n  3 4\n]";
    let problems = load(&sources(lines, &[])).unwrap_err().to_string();
    assert!(!problems.contains("geheim"), "{problems}");
    for (name, value) in [
        ("TOWPATH_INGEST__WORKER__WEBHOOK__URL", "htps://h/x/geheim"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "htp://h?k=geheim"),
        ("TOWPATH_ORDERS__NOTIFY__WEBHOOK__URL", "htp://h/geheim"),
    ] {
        let problems = load(&sources("", &[(name, value)]))
            .unwrap_err()
            .to_string();
        assert!(!problems.contains("geheim"), "{problems}");
    }
}

/// The lines of the commented file that set a key, without their `# `.
fn commented_keys(file: &str) -> Vec<&str> {
    file.lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| {
            let name = line.split(" = ").next().unwrap_or_default();
            KEYS.iter()
                .any(|key| key.path.rsplit('.').next() == Some(name))
        })
        .collect()
}

#[test]
fn the_commented_file_is_the_default() {
    let file = commented_file();
    assert_eq!(commented_keys(&file).len(), KEYS.len());
    let plain: String = file
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if commented_keys(line) == [rest] => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let (mut from_file, default) = (
        load(&sources(&plain, &[])).unwrap_or_else(|problems| panic!("{problems}")),
        load(&sources("", &[])).unwrap(),
    );
    let said = |setting: &&Setting| setting.origin != Origin::Default;
    assert_eq!(from_file.settings.values().filter(said).count(), KEYS.len());
    // A file that says the default says it.
    from_file.config.admin_is_default = true;
    assert_eq!(from_file.config, default.config);
}

#[test]
fn each_line_of_the_commented_file_stands_alone() {
    let file = commented_file();
    for line in commented_keys(&file) {
        let alone = file.replace(&format!("# {line}\n"), &format!("{line}\n"));
        assert_ne!(alone, file);
        load(&sources(&alone, &[])).unwrap_or_else(|problems| panic!("{line}: {problems}"));
    }
}

#[test]
fn the_schema_knows_every_key_and_no_other() {
    let schema = json_schema();
    for key in KEYS {
        let mut at = &schema;
        for part in key.path.split('.') {
            assert_eq!(at["additionalProperties"], false);
            at = &at["properties"][part];
        }
        assert!(at["description"].is_string(), "{}", key.path);
    }
}

#[test]
fn the_reference_page_is_current() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/configuration.md"
    );
    if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
        std::fs::write(path, reference_page()).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap_or_default(),
        reference_page(),
        "run with TOWPATH_UPDATE_DOCS=1"
    );
}

#[test]
fn a_problem_shows_its_line_and_points_at_it() {
    let problems = load(&sources("[ingest]\nqeue = \"x\"\n", &[])).unwrap_err();
    let known = "queue, max_body, max_batch_body, max_depth, idempotency_window, worker";
    assert_eq!(
        problems.to_string(),
        format!(
            "towpath.toml:2:1: unknown key `qeue` in `[ingest]`; did you mean `queue`? known: {known}\n\
             \x20 | qeue = ***\n\
             \x20 | ^^^^\n\
             1 problem in the configuration"
        )
    );
}

#[test]
fn the_wrong_value_is_marked_also_behind_tabs_and_secrets() {
    let shown = |file: &str| load(&sources(file, &[])).unwrap_err().to_string();
    let text = shown("[ingest]\n\tmax_body\t= \"lots\"");
    assert!(
        text.contains("\n  | \tmax_body\t= \"lots\"\n  | \t        \t  ^^^^^^\n"),
        "{text}"
    );
    let text = shown("[backends]\ndefault = \"reddis://me:geheim@host/0\"");
    assert!(
        text.contains("| default = \"reddis://me:***@host/0\"\n  |           ^^^"),
        "{text}"
    );
}

#[test]
fn a_reference_address_becomes_the_url_of_the_backend() {
    let env = [
        ("REDIS_ADDR", " redis:6379 "),
        ("TOWPATH_BACKENDS__RELAY", "redis://redis:6379/0"),
    ];
    let mut sources = sources("[embedded]\ndurability = \"os\"", &env);
    sources.stores.backends = WITH_REDIS;
    let loaded = load(&sources).unwrap();
    assert_eq!(
        loaded.config.ingest_backend.expose(),
        "redis://redis:6379/0"
    );
    assert_eq!(
        loaded.warnings,
        ["`embedded.durability` (towpath.toml:2:14) has no effect: the backend is `redis`"]
    );
    let env = "TOWPATH_BACKENDS__INGEST".to_owned();
    sources.env.insert(env, "embedded:here".to_owned());
    let url = load(&sources).unwrap().config.ingest_backend;
    assert!(url.expose().starts_with("embedded:here?durability=os&"));
}

#[test]
fn an_embedded_url_takes_the_embedded_keys_it_does_not_name() {
    let file = "[backends]\ndefault = \"embedded:here?reserve=1MiB\"\n[embedded]\ndurability = \"os\"\ndisk_reserve = 0\nsegment_size = \"1MiB\"";
    assert_eq!(
        load(&sources(file, &[]))
            .unwrap()
            .config
            .ingest_backend
            .expose(),
        "embedded:here?reserve=1MiB&durability=os&segment=1048576&memory=50%&timeout=5000ms"
    );
}

#[test]
fn secrets_come_from_files_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "whsec_aGVsbG8=\n").unwrap();
    let path = path.display().to_string();
    let expected = [Secret::new("whsec_aGVsbG8=")];
    let file = format!("[ingest.worker.webhook]\nsecret_file = {path:?}");
    let loaded = load(&sources(&file, &[])).unwrap();
    assert_eq!(loaded.config.webhook_secrets, expected);
    let name = "TOWPATH_INGEST__WORKER__WEBHOOK__SECRET_FILE";
    let loaded = load(&sources("", &[(name, &path)])).unwrap();
    assert_eq!(loaded.config.webhook_secrets, expected);
    let shown = format!("{:?}", origins_table(&loaded));
    assert!(shown.contains(name), "{shown}");

    // The file's contents are checked, and not shown.
    std::fs::write(&path, "geheim!").unwrap();
    let text = load(&sources(&file, &[])).unwrap_err().to_string();
    assert!(
        text.contains("towpath.toml:2:15") && !text.contains("geheim"),
        "{text}"
    );
    // A key without a secret has no such file.
    let text = load(&sources("[log]\nlevel_file = \"x\"", &[])).unwrap_err();
    assert!(
        text.to_string().contains("unknown key `level_file`"),
        "{text}"
    );
}

#[test]
fn an_empty_text_takes_an_optional_key_back() {
    let mut sources = sources("[ingest]\nmax_depth = 5", &[]);
    assert_eq!(load(&sources).unwrap().config.max_depth, Some(5));
    let flag = ("ingest.max_depth", "", "--set");
    sources.flags = vec![(flag.0.to_owned(), flag.1.to_owned(), flag.2.to_owned())];
    assert_eq!(load(&sources).unwrap().config.max_depth, None);
}

#[test]
fn parts_of_a_database_make_its_url() {
    let url = |env: &[(&str, &str)]| {
        let loaded = load(&sources("", env)).unwrap();
        loaded.config.accounts.database.expose().to_owned()
    };
    assert!(url(&[]).starts_with("sqlite:"));
    assert_eq!(
        url(&[("DB_HOST", "db")]),
        "postgres://postgres:postgres@db:5432/outbox_db?sslmode=disable"
    );
    let all = [
        ("DB_HOST", "db"),
        ("DB_PORT", "5433"),
        ("DB_USER", "me"),
        ("DB_PASSWORD", "a/b@c"),
        ("DB_NAME", "users"),
        ("DB_SSLMODE", "require"),
    ];
    assert_eq!(
        url(&all),
        "postgres://me:a%2Fb%40c@db:5433/users?sslmode=require"
    );
    let own = ("TOWPATH_ACCOUNTS__DATABASE", "sqlite:x.db");
    assert_eq!(url(&[all[0], own]), "sqlite:x.db");
    let wrong = sources("", &[("DB_HOST", "db"), ("DB_SSLMODE", "perhaps")]);
    let text = load(&wrong).unwrap_err().to_string();
    assert!(text.contains("variable DB_SSLMODE: `perhaps`"), "{text}");
}

#[test]
fn the_variables_of_the_fleet_keep_their_meaning() {
    let env = [
        ("CONTROLLER_PORT", "7001"),
        ("CONTROLLER_DB_PATH", "c.db"),
        ("API_KEY", "a-key-of-our-own-fleet"),
        ("AGENT_HOSTNAME", "a1"),
        ("AGENT_IP", "10.0.0.1"),
        ("AGENT_PORT", "9"),
        ("CONTROLLER_URL", "http://c:6001/"),
        ("WORKER_URL", "http://w1:6002,http://w2:6002"),
        ("POLL_INTERVAL_SECONDS", "5"),
        ("REQUEST_TIMEOUT_SECONDS", "7"),
        ("WORKER_PORT", "7002"),
        ("REDIS_HOST", "r"),
        ("REDIS_PORT", "6380"),
        ("REDIS_DB", "2"),
        ("WORKER_RETRY_MAX", "1"),
    ];
    let mut all = sources("", &env);
    all.stores.backends = WITH_REDIS;
    let fleet = load(&all).unwrap().config.fleet;
    assert_eq!(fleet.controller_listen.as_deref(), Some(":7001"));
    assert_eq!(fleet.database.expose(), "sqlite:c.db");
    assert_eq!(fleet.api_keys[0].expose(), "a-key-of-our-own-fleet");
    assert_eq!(
        (
            fleet.hostname.as_deref(),
            fleet.ip_address.as_deref(),
            fleet.port
        ),
        (Some("a1"), Some("10.0.0.1"), 9)
    );
    assert_eq!(fleet.controller.as_deref(), Some("http://c:6001"));
    assert_eq!(fleet.workers, ["http://w1:6002", "http://w2:6002"]);
    assert_eq!((fleet.poll.as_secs(), fleet.timeout.as_secs()), (5, 7));
    assert_eq!(fleet.worker_listen.as_deref(), Some(":7002"));
    assert_eq!(fleet.backend.expose(), "redis://r:6380/2");
    assert_eq!(fleet.limits.attempts, 2);
    let known = |development: &str| {
        let file = format!("[fleet]\ndevelopment = \"{development}\"");
        load(&sources(&file, &[("API_KEY", "default-api-key")]))
    };
    assert!(
        known("off")
            .unwrap_err()
            .to_string()
            .contains("is publicly known")
    );
    known("on").unwrap();
    for wrong in [
        "[fleet.worker]\nallow = [\"a b\"]",
        "[fleet.agent]\nworkers = [\"here\"]",
        "[fleet]\napi_keys = \"short\"",
        "[fleet]\napi_keys = \"12345678\"",
        "[fleet]\napi_keys = \"DEFAULT-API-KEY\"",
        "[fleet]\napi_keys = \"a-key-of-our-own-fleet password\"",
        "[fleet.agent]\nkey = \"password\"",
        "[fleet.agent]\nworker_key = \"password\"",
        "[fleet]\npublic_key = \"password\"",
    ] {
        assert!(load(&sources(wrong, &[])).is_err(), "{wrong}");
    }
}

#[test]
fn variables_of_kubernetes_services_set_nothing() {
    let address = "tcp://10.96.0.9:6379";
    let env = [
        ("REDIS_ADDR", "redis:6379"),
        ("REDIS_SERVICE_HOST", "10.96.0.9"),
        ("REDIS_PORT", address),
        ("CONTROLLER_PORT", address),
        ("DB_PORT", address),
        ("TOWPATH_SERVICE_HOST", "10.96.0.9"),
        ("TOWPATH_SERVICE_PORT", "8080"),
        ("TOWPATH_PORT", address),
        ("TOWPATH_PORT_8080_TCP_ADDR", "10.96.0.9"),
    ];
    let mut all = sources("", &env);
    all.stores.backends = WITH_REDIS;
    let loaded = load(&all).unwrap();
    assert_eq!(loaded.config.fleet.backend.expose(), "redis://redis:6379/0");
    assert_eq!(loaded.config.fleet.controller_listen, None);
    assert!(
        loaded
            .config
            .accounts
            .database
            .expose()
            .starts_with("sqlite:")
    );
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn a_variable_like_none_of_ours_is_a_warning() {
    let loaded = load(&sources("", &[("TOWPATH_RELEASE", "7")])).unwrap();
    assert!(loaded.warnings[0].contains("`TOWPATH_RELEASE` sets nothing"));
    let loaded = load(&sources("", &[("TOWPATH_COLOUR__SCHEME", "7")])).unwrap();
    assert!(loaded.warnings[0].contains("`TOWPATH_COLOUR__SCHEME` sets nothing"));
    for wrong in ["TOWPATH_INGEST__QEUE", "TOWPATH_LOG_LEVEL"] {
        let problems = load(&sources("", &[(wrong, "x")])).unwrap_err();
        assert!(problems.to_string().contains(wrong), "{wrong}");
    }
}

#[test]
fn passwords_of_databases_and_redis_come_from_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "p/w\n").unwrap();
    let path = file.to_str().unwrap();
    let env = [
        ("DB_HOST", "db"),
        ("DB_PASSWORD_FILE", path),
        ("REDIS_ADDR", "redis.example:6380"),
        ("REDIS_DB", "3"),
        ("REDIS_PASSWORD_FILE", path),
    ];
    let mut all = sources("", &env);
    all.stores.backends = WITH_REDIS;
    let config = load(&all).unwrap().config;
    let database = config.accounts.database.expose();
    assert!(
        database.starts_with("postgres://postgres:p%2Fw@db:5432/"),
        "{database}"
    );
    assert_eq!(
        config.fleet.backend.expose(),
        "redis://:p%2Fw@redis.example:6380/3"
    );
    let missing = load(&sources("", &[("DB_PASSWORD_FILE", "/nowhere")])).unwrap_err();
    assert!(
        missing.to_string().contains("DB_PASSWORD_FILE"),
        "{missing}"
    );
    let both = [("DB_PASSWORD", "a"), ("DB_PASSWORD_FILE", path)];
    let both = load(&sources("", &both)).unwrap_err();
    assert!(both.to_string().contains("unset one of them"), "{both}");
}

#[test]
fn errors_of_variables_show_the_written_value() {
    for (name, value) in [
        ("PORT", "abc"),
        ("POLL_INTERVAL_SECONDS", "abc"),
        ("DB_PORT", "70000"),
        ("REDIS_DB", "first"),
        ("CONTROLLER_PORT", "-1"),
    ] {
        let problems = load(&sources("", &[(name, value)]))
            .unwrap_err()
            .to_string();
        let expected = format!("`{value}` is not a whole number");
        assert!(
            problems.contains(name) && problems.contains(&expected),
            "{problems}"
        );
    }
}

/// The texts of problems; they must hold no piece of a secret.
fn problems(file: &str, env: &[(&str, &str)]) -> String {
    let mut all = sources(file, env);
    all.stores = wiring::STORES;
    load(&all).unwrap_err().to_string()
}

#[test]
fn no_piece_of_a_password_is_shown() {
    for url in [
        "amqp://guest:ge?heim@h",
        "redis://:ge?heim@h:6379",
        "redis://:ge/heim@h",
        "kafka://u:ge#heim@h",
        "redis://:geheim",
        "geheim@h:5672",
        "redis:u:geheim@h",
        "reddis://:ge,heim@h",
    ] {
        for (file, env) in [
            (format!("[backends]\ndefault = \"{url}\""), None),
            (String::new(), Some(("TOWPATH_BACKENDS__DEFAULT", url))),
            (
                "[backends]\ndefault = \"${BACKEND}\"".to_owned(),
                Some(("BACKEND", url)),
            ),
        ] {
            let text = problems(&file, env.as_slice());
            let shown = text.replace("percent-", "");
            assert!(
                !shown.contains("ge?") && !shown.contains("heim"),
                "{url}: {text}"
            );
        }
    }
    let text = problems("", &[("RABBITMQ_URLS", "amqp://u:ge/heim@h")]);
    assert!(
        text.contains("percent-encoded") && !text.contains("heim"),
        "{text}"
    );
    for url in ["postgres://u:ge#heim@h/d", "postgres://u:ge?heim@h/d"] {
        let text = problems("", &[("TOWPATH_ACCOUNTS__DATABASE", url)]);
        assert!(text.contains("%23") && !text.contains("heim"), "{text}");
    }
    for (key, url) in [
        ("INGEST__WORKER__WEBHOOK__URL", "https://u:ge/heim@h/p"),
        ("ORDERS__NOTIFY__SMTP__URL", "smtp://u:ge?heim@h:25"),
    ] {
        let text = problems("", &[(&format!("TOWPATH_{key}"), url)]);
        assert!(text.contains("%2F") && !text.contains("heim"), "{text}");
    }
    let hook = [(
        "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
        "https://u:x@h/p?token=geheim&a=geheim",
    )];
    let loaded = load(&sources("", &hook)).unwrap();
    let shown = format!("{:?}", origins_table(&loaded));
    assert!(
        shown.contains("https://u:***@h/***") && !shown.contains("geheim"),
        "{shown}"
    );
    let program = [(
        "TOWPATH_INGEST__WORKER__COMMAND__PROGRAM",
        "[\"curl\", \"-H\", \"X-Key: geheim\"]",
    )];
    let loaded = load(&sources("", &program)).unwrap();
    let shown = format!("{:?}", origins_table(&loaded));
    assert!(
        shown.contains("curl") && !shown.contains("geheim"),
        "{shown}"
    );
}

#[test]
fn variables_of_apps_that_do_not_run_stop_nothing() {
    let env = [
        ("CONTROLLER_PORT", "high"),
        ("DB_PORT", "postgres"),
        ("TOWPATH_ORDERS__DASHBOARD__LISTEN", "nowhere"),
        ("API_KEY", "default-api-key"),
    ];
    let mut all = sources("", &env);
    all.apps = Some(["lines"].into());
    let warnings = load(&all).unwrap().warnings.join("\n");
    for name in ["CONTROLLER_PORT", "DB_PORT", "API_KEY"] {
        let expected = format!("variable {name}: ");
        assert!(warnings.contains(&expected), "{name}: {warnings}");
    }
    assert!(warnings.contains("no role of `fleet` runs"), "{warnings}");
    all.apps = Some(["fleet"].into());
    let text = load(&all).unwrap_err().to_string();
    assert!(
        text.contains("CONTROLLER_PORT") && !text.contains("DB_PORT"),
        "{text}"
    );
    // A problem of several apps, or of the process, is always an error.
    for name in ["PORT", "REDIS_ADDR"] {
        let mut all = sources("", &[(name, "http://x/")]);
        all.apps = Some(["lines"].into());
        assert!(load(&all).unwrap_err().to_string().contains(name));
    }
}

#[test]
fn errors_name_the_variable_that_held_the_value() {
    for (env, expected) in [
        (
            ("REDIS_ADDR", "redis://h:1"),
            "variable REDIS_ADDR: `redis://h:1` is not `host:port`",
        ),
        (
            ("DB_HOST", "postgres://h"),
            "variable DB_HOST: `postgres://h` is not a host",
        ),
        (
            ("DB_SSLMODE", "x"),
            "variable DB_SSLMODE: `x` is not one of",
        ),
        (("KAFKA_BROKERS", "a:b"), "variable KAFKA_BROKERS: `a:b`: "),
    ] {
        let text = problems("", &[env]);
        assert!(text.contains(expected), "{text}");
    }
    let text = problems("[ingest]\nmax_body = \"${SIZE}\"", &[("SIZE", "lots")]);
    assert!(text.contains("with its variables it is `lots`"), "{text}");
    let mut all = sources("", &[("REDIS_ADDR", ":6379")]);
    all.stores = wiring::STORES;
    let config = load(&all).unwrap().config;
    assert_eq!(config.ingest_backend.expose(), "redis://localhost:6379/0");
}

#[test]
fn a_value_from_a_file_is_read_like_the_variable() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (redis, workers) = (path("redis", "r:6380\n"), path("w", "http://a,http://b\n"));
    let env = [
        ("REDIS_ADDR_FILE", redis.as_str()),
        ("WORKER_URL_FILE", &workers),
    ];
    let mut all = sources("", &env);
    all.stores = wiring::STORES;
    let config = load(&all).unwrap().config;
    assert_eq!(config.ingest_backend.expose(), "redis://r:6380/0");
}

#[test]
fn values_that_are_not_utf8_are_refused() {
    let mut all = sources("[ingest]\nqueue = \"${STAGE:-x}\"", &[]);
    for (name, is_ours) in [
        ("QUEUE_NAME", true),
        ("TOWPATH_INGEST__QUEUE", true),
        ("DB_PASSWORD_FILE", true),
        ("REDIS_PASSWORD", true),
        ("TOWPATH_TOKEN", true),
        ("STAGE", true),
        ("LS_COLORS", false),
    ] {
        all.unreadable = [name.to_owned()].into();
        let outcome = load(&all).map_err(|problems| problems.to_string());
        let expected = format!("variable {name}: the value is not UTF-8");
        match outcome {
            Err(text) => assert!(is_ours && text.contains(&expected), "{text}"),
            Ok(_) => assert!(!is_ours, "{name}"),
        }
    }
    all.unreadable = ["QUEUE_NAME".to_owned()].into();
    all.apps = Some(["fleet"].into());
    assert_eq!(load(&all).unwrap().warnings.len(), 1);
}
