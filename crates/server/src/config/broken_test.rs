//! Broken configurations, and all reported problems.

use super::tests::sources;
use super::*;

/// File, variables, and for each problem its place and a part of its text.
type Broken = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [(&'static str, &'static str)],
);

const BROKEN: &[Broken] = &[
    ("[ingest", &[], &[("towpath.toml:1:", "invalid TOML")]),
    (
        "[ingest]\nqueue = ",
        &[],
        &[("towpath.toml:2:", "invalid TOML")],
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
        &[(
            "towpath.toml:2:9",
            "`ingest.queue` must be the name of a queue; did you mean `\"7\"`?",
        )],
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
        &[("towpath.toml:2:12", "did you mean `1MiB`?")],
    ),
    (
        "[ingest]\nmax_depth = 0",
        &[],
        &[("towpath.toml:2:13", "must be a whole number from 1")],
    ),
    (
        "[ingest]\nmax_depth = \"10\"",
        &[],
        &[(
            "towpath.toml:2:13",
            "must be a whole number from 1; write 10 without quotes",
        )],
    ),
    (
        "[server]\ndrain = \"25\"",
        &[],
        &[(
            "towpath.toml:2:9",
            "must be a duration like \"30s\", from 1s to 10m; did you mean `25s`?",
        )],
    ),
    (
        "[server]\ndrain = 25",
        &[],
        &[("towpath.toml:2:9", "did you mean `\"25s\"`?")],
    ),
    (
        "[server]\ndrain = \"-5s\"",
        &[],
        &[("towpath.toml:2:9", "must be a duration")],
    ),
    (
        "[server]\nlisten = \"8080\"",
        &[],
        &[("towpath.toml:2:10", "did you mean `:8080`?")],
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
        "[server.tls]\nclient_ca = \"ca.pem\"",
        &[],
        &[("towpath.toml:2:13", "needs `server.tls.certificate`")],
    ),
    (
        "[server.tls]\nadmin = \"on\"",
        &[],
        &[("towpath.toml:2:9", "needs `server.tls.certificate`")],
    ),
    (
        "[ingest.worker]\nsink = \"files\"",
        &[],
        &[(
            "towpath.toml:2:8",
            "must be one of file, webhook, command, stdout; did you mean `file`?",
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
        "[ingest.worker.retry]\nfirst = \"10h\"",
        &[],
        &[(
            "towpath.toml:2:9",
            "`retry.first` is longer than `retry.max`",
        )],
    ),
    (
        "[ingest.worker.command]\nprogram = \"sh -c x\"",
        &[],
        &[(
            "towpath.toml:2:11",
            "must be a list of texts; did you mean `[\"sh\",\"-c\",\"x\"]`?",
        )],
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
        "[backends]\ndefault = \"reddis://x\"",
        &[],
        &[(
            "towpath.toml:2:11",
            "`backends.default`: unknown backend `reddis`; available: embedded",
        )],
    ),
    (
        "[backends]\ndefault = \"./data\"",
        &[],
        &[("towpath.toml:2:11", "did you mean `embedded:./data`?")],
    ),
    (
        "[backends]\ningest = \"embedded:x?durability=fsnc\"",
        &[],
        &[("towpath.toml:2:10", "unknown durability `fsnc`")],
    ),
    (
        "[embedded]\ndurability = \"fsnyc\"",
        &[],
        &[(
            "towpath.toml:2:14",
            "must be one of fsync, interval:100ms (1 to 60000), os, none; did you mean `fsync`?",
        )],
    ),
    (
        "[embedded]\ndurability = \"100ms\"",
        &[],
        &[("towpath.toml:2:14", "did you mean `interval:100ms`?")],
    ),
    (
        "[log]\nlevel = \"inof\"",
        &[],
        &[("towpath.toml:2:9", "did you mean `info`?")],
    ),
    (
        "[log]\nlevel = \"info,hyper\"",
        &[],
        &[("towpath.toml:2:9", "did you mean `info,hyper=debug`?")],
    ),
    (
        "[ingest.worker.webhook]\nurl = \"example.com/hook\"",
        &[],
        &[(
            "towpath.toml:2:7",
            "did you mean `https://example.com/***`?",
        )],
    ),
    (
        "[ingest.worker.webhook]\nurl = \"ftp://example.com/hook\"",
        &[],
        &[(
            "towpath.toml:2:7",
            "did you mean `https://example.com/***`?",
        )],
    ),
    (
        "[ingest.worker.webhook]\nurl = \"http://10.0.0.1:8080/hook\"\nallow = [\"public\"]",
        &[],
        &[(
            "towpath.toml:3:9",
            "name its host there, or leave `webhook.allow` out",
        )],
    ),
    (
        "[orders.notify.webhook]\nallow = [\"a b\"]",
        &[],
        &[("towpath.toml:2:9", "`webhook.allow` takes places like")],
    ),
    (
        "[ingest.worker.webhook]\nsecret = \"whsec_geheim!\"",
        &[],
        &[(
            "towpath.toml:2:10",
            "must be secrets of `whsec_` and base64",
        )],
    ),
    (
        "[ingest.worker.webhook]\nsecret = \"whsec_\"",
        &[],
        &[(
            "towpath.toml:2:10",
            "must be secrets of `whsec_` and base64",
        )],
    ),
    (
        "[ingest.worker.webhook]\nsecret_file = \"/nowhere/x\"",
        &[],
        &[("towpath.toml:2:15", "`/nowhere/x` cannot be read")],
    ),
    (
        "[ingest.worker.webhook]\nsecret = \"whsec_aGVsbG8=\"\nsecret_file = \"/dev/null\"",
        &[],
        &[("towpath.toml:3:15", "are both set; keep one")],
    ),
    (
        "[data]\ndir = \"\"",
        &[],
        &[("towpath.toml:2:7", "`data.dir` must be a path")],
    ),
    (
        "[data]\ndir = \"what?\"",
        &[],
        &[("towpath.toml:2:7", "cannot contain `?`")],
    ),
    (
        "[server]\nlisten = \"a:b:c:1\"",
        &[],
        &[("towpath.toml:2:10", "must be an address")],
    ),
    (
        "[server]\nlisten = \"::1:8080\"",
        &[],
        &[("towpath.toml:2:10", "did you mean `[::1]:8080`?")],
    ),
    (
        "[server]\nadmin = \"http://localhost:7070/\"",
        &[],
        &[("towpath.toml:2:9", "did you mean `localhost:7070`?")],
    ),
    (
        "",
        &[("REDIS_ADDR", "redis:6379")],
        &[(
            "variable REDIS_ADDR",
            "unknown backend `redis`; available: embedded; it sets `backends.ingest`",
        )],
    ),
    // The later of two keys is pointed at, in the order of the places, also beside other problems.
    (
        "[ingest.worker]\nsink = \"stdout\"\nconcurrency = 4\n[log]\nformat = \"yaml\"",
        &[],
        &[
            ("towpath.toml:3:15", "take one consumer"),
            ("towpath.toml:5:10", "must be one of auto"),
        ],
    ),
    (
        "[ingest.worker]\nconcurrency = 4\nsink = \"stdout\"",
        &[],
        &[("towpath.toml:3:8", "take one consumer")],
    ),
    // A rule is silent about a key that is invalid.
    (
        "[ingest.worker]\nconcurrency = 4\nsink = \"webhok\"",
        &[],
        &[("towpath.toml:3:8", "did you mean `webhook`?")],
    ),
    (
        "[server]\nlisten = \":9\"\nadmin = \"127.0.0.1:9\"",
        &[],
        &[("towpath.toml:3:9", "are the same address")],
    ),
    (
        "[orders.notify]\nchannel = \"smtp\"",
        &[],
        &[("towpath.toml:2:11", "needs `orders.notify.smtp.url`")],
    ),
    (
        "[orders.notify]\nchannel = \"webhook\"",
        &[],
        &[("towpath.toml:2:11", "needs `orders.notify.webhook.url`")],
    ),
    (
        "[orders.notify.smtp]\nurl = \"host:25\"\nfrom = \"orders\"",
        &[],
        &[
            ("towpath.toml:2:7", "must be a URL like \"smtp://host:25\""),
            ("towpath.toml:3:8", "must be a mail address"),
        ],
    ),
    (
        "[server]\nlisten = \":9\"\n[orders.dashboard]\nlisten = \":9\"",
        &[],
        &[("towpath.toml:4:10", "is the address of `server.listen`")],
    ),
    // Syntax errors hide nothing that stands behind them.
    (
        "[ingest]\nqueue = \nmax_bdy = \"1MiB\"\n[server\nlisten = \":1\"\n[log]\nformat= \"yaml\"\n[server]\ndrain = \"x",
        &[],
        &[
            ("towpath.toml:2:", "invalid TOML"),
            ("towpath.toml:3:1", "did you mean `max_body`?"),
            ("towpath.toml:4:", "invalid TOML"),
            ("towpath.toml:7:9", "must be one of auto, pretty, json"),
            ("towpath.toml:9:", "invalid TOML"),
        ],
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
fn broken_configurations_name_cause_and_place() {
    for (file, env, expected) in BROKEN {
        let problems = load(&sources(file, env)).expect_err(file);
        assert_eq!(problems.0.len(), expected.len(), "{file}: {problems}");
        for (problem, (place, message)) in problems.0.iter().zip(*expected) {
            assert!(problem.place().starts_with(place), "{file}: {problem}");
            assert!(problem.message.contains(message), "{file}: {problem}");
            let in_file = matches!(problem.at, Origin::File(_));
            assert_eq!(problem.snippet.is_some(), in_file, "{file}: {problem}");
        }
    }
}

#[test]
fn keys_that_cannot_be_set_are_not_suggested() {
    let file = "[ingest.worker]\nprocessing_delay = -1";
    let problems = load(&sources(file, &[])).expect_err(file).to_string();
    assert!(!problems.contains("did you mean"), "{problems}");
}
