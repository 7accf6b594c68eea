//! Precedence, and thirty broken configurations with everything that is said about them.

use std::collections::BTreeMap;

use super::*;

fn sources(file: &str, env: &[(&str, &str)]) -> Sources {
    Sources {
        file: Some(("towpath.toml".to_owned(), file.to_owned())),
        env: env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        flags: Vec::new(),
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
fn reference_variables_mean_what_they_meant() {
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
    let loaded = load(&sources(
        "[backends]\ndefault = \"redis://me:geheim@host/0\"",
        &secret,
    ))
    .unwrap();
    let shown = format!("{:?}", origins_table(&loaded));
    assert!(
        !shown.contains("whsec_") && !shown.contains("geheim"),
        "{shown}"
    );
    assert!(shown.contains("redis://me:***@host/0"), "{shown}");
}

#[test]
fn problems_hide_what_may_be_secret() {
    for file in [
        "[ingest.worker.webhook]\nsecret = [\"whsec_geheim\"]",
        "[ingest.worker.webhook]\nsecret = \"whsec_geheim",
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
        "amqp://a:geheim@x,amqp://b:ge@heim@y\u{7}",
    )];
    let problems = load(&sources("", &env)).unwrap_err().to_string();
    assert!(
        !problems.contains("geheim") && !problems.contains("heim@"),
        "{problems}"
    );
}

#[test]
fn the_commented_file_is_the_default() {
    let file = commented_file();
    let plain: String = file
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest.contains(" = ")
                    && !rest.ends_with('.')
                    && !rest.ends_with("\"\"")
                    && !rest.ends_with("[]") =>
            {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let (from_file, default) = (
        load(&sources(&plain, &[])).unwrap(),
        load(&sources("", &[])).unwrap(),
    );
    assert!(
        from_file
            .settings
            .values()
            .filter(|setting| setting.origin != Origin::Default)
            .count()
            > 25
    );
    assert_eq!(
        format!("{:?}", from_file.config),
        format!("{:?}", default.config)
    );
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
             \x20 | qeue = \"x\"\n\
             \x20 | ^^^^\n\
             1 problem in the configuration"
        )
    );
}

/// File, variables, and for each problem its place and a part of what is said.
type Broken = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [(&'static str, &'static str)],
);

const BROKEN: [Broken; 30] = [
    ("[ingest", &[], &[("towpath.toml:1:", "this is no TOML")]),
    (
        "[ingest]\nqueue = ",
        &[],
        &[("towpath.toml:2:", "this is no TOML")],
    ),
    (
        "[ingest]\nqueue = \"a\"\nqueue = \"b\"",
        &[],
        &[("towpath.toml:3:1", "duplicate")],
    ),
    (
        "[ingst]\nqueue = \"a\"",
        &[],
        &[(
            "towpath.toml:1:2",
            "unknown section `ingst`; did you mean `ingest`?",
        )],
    ),
    (
        "queue = \"a\"",
        &[],
        &[("towpath.toml:1:1", "unknown section `queue`")],
    ),
    (
        "ingest = 1",
        &[],
        &[(
            "towpath.toml:1:1",
            "`ingest` is a section, not a value; write `[ingest]`",
        )],
    ),
    (
        "[ingest]\nqueue = 7",
        &[],
        &[("towpath.toml:2:9", "`ingest.queue` must be a text")],
    ),
    (
        "[ingest]\nqueue = \"two words\"",
        &[],
        &[("towpath.toml:2:9", "contains white space")],
    ),
    (
        "[ingest]\nmax_body = \"lots\"",
        &[],
        &[(
            "towpath.toml:2:12",
            "must be a size like \"1MiB\", from 1KiB to 16MiB",
        )],
    ),
    (
        "[ingest]\nmax_body = \"1GiB\"",
        &[],
        &[("towpath.toml:2:12", "from 1KiB to 16MiB")],
    ),
    (
        "[ingest]\nmax_body = \"1MB\"",
        &[],
        &[("towpath.toml:2:12", "must be a size")],
    ),
    (
        "[ingest]\nmax_depth = 0",
        &[],
        &[("towpath.toml:2:13", "must be a whole number from 1")],
    ),
    (
        "[ingest]\nmax_depth = \"10\"",
        &[],
        &[("towpath.toml:2:13", "must be a whole number")],
    ),
    (
        "[server]\ndrain = \"25\"",
        &[],
        &[(
            "towpath.toml:2:9",
            "must be a duration like \"30s\", from 1s to 10m",
        )],
    ),
    (
        "[server]\ndrain = 25",
        &[],
        &[("towpath.toml:2:9", "must be a duration")],
    ),
    (
        "[server]\ndrain = \"-5s\"",
        &[],
        &[("towpath.toml:2:9", "must be a duration")],
    ),
    (
        "[server]\nlisten = \"8080\"",
        &[],
        &[("towpath.toml:2:10", "must be an address like \":8080\"")],
    ),
    (
        "[server]\nlisten = \":80800\"",
        &[],
        &[("towpath.toml:2:10", "must be an address")],
    ),
    (
        "[server]\nlisten = \":1\"\nadmin = \":1\"",
        &[],
        &[("towpath.toml:3:9", "are the same address")],
    ),
    (
        "[ingest.worker]\nsink = \"files\"",
        &[],
        &[(
            "towpath.toml:2:8",
            "must be one of file, webhook, command, stdout",
        )],
    ),
    (
        "[ingest.worker]\nsink = \"webhook\"",
        &[],
        &[("towpath.toml:2:8", "needs `ingest.worker.webhook.url`")],
    ),
    (
        "[ingest.worker]\nsink = \"command\"",
        &[],
        &[("towpath.toml:2:8", "needs `ingest.worker.command.program`")],
    ),
    (
        "[ingest.worker]\nconcurrency = 4",
        &[],
        &[("towpath.toml:2:15", "take one consumer")],
    ),
    (
        "[ingest.worker.retry]\nfirst = \"10m\"",
        &[],
        &[(
            "towpath.toml:2:9",
            "`retry.first` is longer than `retry.max`",
        )],
    ),
    (
        "[ingest.worker.command]\nprogram = \"sh -c x\"",
        &[],
        &[("towpath.toml:2:11", "must be a list of texts")],
    ),
    (
        "[ingest.worker.command]\nprogram = [1]",
        &[],
        &[("towpath.toml:2:11", "must be a list of texts")],
    ),
    (
        "[ingest]\nqueue = \"${NOWHERE}\"",
        &[],
        &[("towpath.toml:2:9", "variable `NOWHERE` is not set")],
    ),
    (
        "",
        &[("TOWPATH_INGEST__QEUE", "x")],
        &[(
            "variable TOWPATH_INGEST__QEUE",
            "did you mean `TOWPATH_INGEST__QUEUE`?",
        )],
    ),
    (
        "",
        &[("HTTP_ADDR", "here")],
        &[("variable HTTP_ADDR", "`here` is not an address")],
    ),
    (
        "[server]\ndrian = \"5s\"\nlisten = 1\n[ingest]\nmax_body = \"x\"",
        &[("TOWPATH_LOG__FORMAT", "yaml")],
        &[
            ("towpath.toml:2:1", "did you mean `drain`?"),
            ("towpath.toml:3:10", "must be an address"),
            ("towpath.toml:5:12", "must be a size"),
            (
                "variable TOWPATH_LOG__FORMAT",
                "`yaml` is not one of auto, pretty, json",
            ),
        ],
    ),
];

#[test]
fn thirty_broken_configurations_are_told_what_is_wrong_and_where() {
    for (file, env, expected) in BROKEN {
        let problems = load(&sources(file, env)).expect_err(file);
        let found: Vec<&Problem> = problems.0.iter().collect();
        assert_eq!(found.len(), expected.len(), "{file}: {problems}");
        for (problem, (place, message)) in found.iter().zip(expected) {
            assert!(problem.place.starts_with(place), "{file}: {problem}");
            assert!(problem.message.contains(message), "{file}: {problem}");
        }
    }
}

#[test]
fn only_addresses_of_the_web_are_urls() {
    let set = |url: &str| {
        load(&sources(
            "",
            &[("TOWPATH_INGEST__WORKER__WEBHOOK__URL", url)],
        ))
    };
    for url in ["http://localhost:1/x?y=z", "https://me:secret@host"] {
        assert_eq!(set(url).unwrap().config.webhook_url.as_deref(), Some(url));
    }
    for url in [
        "ftp://me:geheim@host/x",
        "host/path",
        "http://",
        "mailto:me@host",
    ] {
        let problem = set(url).unwrap_err().0.remove(0);
        let expected =
            "is not a URL like \"https://host/path\"; it sets `ingest.worker.webhook.url`";
        assert!(problem.message.contains(expected), "{problem}");
        assert!(!problem.message.contains("geheim"), "{problem}");
    }
}
