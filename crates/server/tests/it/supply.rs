//! The shipped product: dependencies, notices, build commands, and the protections of the deploy files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use towpath_testkit::servers::made;

use crate::deploy::{deploy, is_there, without_name, write_secrets};
use crate::manifests::documents;
use crate::process::able;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The licences of dependencies are allowed, and one that is not is found.
#[test]
fn dependencies_have_the_licences_and_sources_that_are_allowed() {
    let cached = made("cargo-deny/bin/cargo-deny");
    let program = match cached.exists() {
        true => cached,
        false => PathBuf::from("cargo-deny"),
    };
    if !able(
        "cargo-deny",
        Command::new(&program).arg("--version").output().is_ok(),
    ) {
        return;
    }
    // Builds fetch the crates of one platform; the rules are about those of all.
    let mut fetch = Command::new(env!("CARGO"));
    let fetched = fetch.args(["fetch", "--quiet", "--locked"]);
    let fetched = fetched.current_dir(root()).status().unwrap().success();
    if !able("the sources of all dependencies", fetched) {
        return;
    }
    let check = |rules: &Path| {
        let mut deny = Command::new(&program);
        deny.current_dir(root());
        deny.args(["--locked", "--offline", "--all-features", "--config"]);
        deny.arg(rules).args(["check", "--hide-inclusion-graph"]);
        let output = deny.args(["licenses", "bans", "sources"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let rules = root().join("deny.toml");
    let (accepted, text) = check(&rules);
    assert!(accepted, "{text}");
    let folder = tempfile::tempdir().unwrap();
    let stricter = folder.path().join("deny.toml");
    let rules = fs::read_to_string(rules).unwrap();
    fs::write(&stricter, rules.replace("  \"ISC\",\n", "")).unwrap();
    let (accepted, text) = check(&stricter);
    assert!(!accepted && text.contains("ISC"), "{text}");
}

#[test]
fn notices_and_the_bill_of_materials_name_every_crate_of_the_binary() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(root().join("scripts/notices"))
        .arg(folder.path())
        .arg("towpath-server/kafka-tls")
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let notices = fs::read_to_string(folder.path().join("THIRD-PARTY-NOTICES.txt")).unwrap();
    let bill = fs::read_to_string(folder.path().join("towpath.cdx.json")).unwrap();
    let bill: Value = serde_json::from_str(&bill).unwrap();
    assert_eq!(
        (&bill["bomFormat"], &bill["specVersion"]),
        (&"CycloneDX".into(), &"1.6".into())
    );
    let components = bill["components"].as_array().unwrap();
    assert!(components.len() > 300, "{}", components.len());
    let mut names = Vec::new();
    for one in components {
        let text = |field: &str| one[field].as_str().unwrap();
        names.push(text("name"));
        assert!(one["licenses"][0]["expression"].is_string(), "{one}");
        if text("name").starts_with("towpath") {
            continue;
        }
        assert_eq!(
            one["hashes"][0]["content"].as_str().unwrap().len(),
            64,
            "{one}"
        );
        let line = format!("\n{} {}: ", text("name"), text("version"));
        assert!(notices.contains(&line), "{line}");
    }
    for library in [
        "aws-lc-sys",
        "libsqlite3-sys",
        "rdkafka-sys",
        "tikv-jemalloc-sys",
        "tokio",
    ] {
        assert!(names.contains(&library), "{library}");
    }
    // Tests have these, and the binary does not.
    for other in [
        "k8s-openapi",
        "proptest",
        "libtest-mimic",
        "towpath-testkit",
    ] {
        assert!(!names.contains(&other), "{other}");
    }
    for terms in [
        "Permission is hereby granted, free of charge",
        "Apache License",
        "librdkafka",
    ] {
        assert!(notices.contains(terms), "{terms}");
    }
}

/// Commands that build or check the product build the versions of the lock file.
#[test]
fn builds_use_the_lock_file() {
    let mut found = 0;
    for file in [
        "Makefile",
        "deploy/docker/Dockerfile",
        "scripts/setup",
        "scripts/notices",
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        for line in text.lines() {
            let command = ["CARGO) ", "RELEASE) ", "cargo ", "\"cargo\", "]
                .iter()
                .find_map(|start| Some(line.split_once(start)?.1));
            let builds = [
                "build",
                "run",
                "test",
                "clippy",
                "doc",
                "install",
                "\"metadata\"",
            ];
            let is_build = command.is_some_and(|rest| {
                let word = rest.split([' ', ',']).next().unwrap();
                builds.contains(&word)
            });
            if is_build && !line.contains("--version") {
                found += 1;
                assert!(line.contains("--locked"), "{file}: {line}");
            }
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn the_unit_has_an_exposure_below_one() {
    if !able("systemd", is_there("systemd-analyze")) {
        return;
    }
    let exposure = |unit: &Path| {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(unit)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let overall = text.lines().find_map(|line| {
            let (_, rest) = line.split_once("Overall exposure level for ")?;
            rest.split_once(": ")?
                .1
                .split(' ')
                .next()?
                .parse::<f64>()
                .ok()
        });
        overall.unwrap_or_else(|| panic!("no exposure: {text}"))
    };
    let unit = deploy().join("systemd/towpath.service");
    assert!(exposure(&unit) < 1.0, "{}", exposure(&unit));
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("towpath.service");
    let text = fs::read_to_string(unit).unwrap();
    fs::write(
        &open,
        text.replace("IPAddressAllow=localhost", "IPAddressAllow=any"),
    )
    .unwrap();
    assert!(exposure(&open) >= 1.0);
}

#[test]
fn compose_files_have_no_default_secret() {
    if !able("docker-compose", is_there("docker-compose")) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = |name: &str| {
        let file = without_name(
            &deploy().join(format!("compose/{name}.yaml")),
            folder.path(),
        );
        let mut compose = Command::new("docker-compose");
        compose.current_dir(folder.path()).arg("-f").arg(file);
        let output = compose.arg("config").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    for file in deploy().join("compose").read_dir().unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let defaults = text.replace("${TOWPATH_COMMIT:-}", "");
        assert!(!defaults.contains(":-"), "{defaults}");
    }
    // Each run of Compose takes a second.
    for name in ["orders", "fleet"] {
        let (accepted, text) = config(name);
        assert!(!accepted && text.contains("secrets.sh"), "{name}: {text}");
    }
    write_secrets(folder.path());
    let first = fs::read_to_string(folder.path().join(".env")).unwrap();
    let values: BTreeMap<&str, &str> = first
        .lines()
        .map(|line| line.split_once('=').unwrap())
        .collect();
    assert_eq!(values.len(), 5);
    assert!(values.values().all(|value| value.len() == 64), "{first}");
    assert_eq!(
        values
            .values()
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        5
    );
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(folder.path().join(".env"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // Once more, and nothing changes: servers have the passwords of their first start.
    write_secrets(folder.path());
    assert_eq!(
        fs::read_to_string(folder.path().join(".env")).unwrap(),
        first
    );
    for name in ["orders", "fleet"] {
        let (accepted, text) = config(name);
        assert!(
            accepted && text.contains(values["REDIS_PASSWORD"]),
            "{name}: {text}"
        );
        assert!(
            !text.contains("guest") && text.contains("requirepass"),
            "{name}: {text}"
        );
    }
}

/// The redis-server of the Compose file, started as a container starts it.
#[test]
fn redis_of_the_deploy_files_wants_its_password() {
    if !able("redis", is_there("redis-server")) {
        return;
    }
    let text = fs::read_to_string(deploy().join("k8s/redis.yaml")).unwrap();
    let all = documents(&text);
    let set = all.iter().find(|one| one["kind"] == "StatefulSet").unwrap();
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let compose = fs::read_to_string(deploy().join("compose/ingest.yaml")).unwrap();
    let script = container["args"][0].as_str().unwrap();
    let shown: Vec<&str> = script.lines().collect();
    for line in &shown {
        assert!(compose.contains(&line.replace('$', "$$")), "{line}");
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let script = script.replace(
        "redis-server -",
        &format!("redis-server - --port 0 --unixsocket {}", socket.display()),
    );
    let mut server = Command::new("sh")
        .args(["-c", &script])
        .env("REDISCLI_AUTH", "of-this-test")
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ping = |password: Option<&str>| {
        let mut client = Command::new("redis-cli");
        client.arg("-s").arg(&socket).arg("ping");
        client.env_remove("REDISCLI_AUTH");
        client.envs(password.map(|password| ("REDISCLI_AUTH", password)));
        String::from_utf8_lossy(&client.output().unwrap().stdout).into_owned()
    };
    crate::process::wait_until("Redis", std::time::Duration::from_secs(20), || {
        ping(Some("of-this-test")).contains("PONG")
    });
    let without = ping(None);
    let words = fs::read_to_string(format!("/proc/{}/cmdline", server.id())).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(without.contains("NOAUTH"), "{without}");
    assert!(!words.contains("of-this-test"), "{words}");
}

#[test]
fn every_pod_has_a_policy_for_both_directions_and_no_secret_is_in_a_manifest() {
    let mut policies = BTreeMap::new();
    let mut sets = Vec::new();
    for file in deploy().join("k8s").read_dir().unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for one in documents(&fs::read_to_string(&file).unwrap()) {
            let name = one["metadata"]["name"].as_str().unwrap().to_owned();
            assert_ne!(one["kind"], "Secret", "{name}");
            match one["kind"].as_str().unwrap() {
                "NetworkPolicy" => drop(policies.insert(name, one)),
                "StatefulSet" => sets.push((name, one)),
                _ => {}
            }
        }
    }
    assert!(sets.len() > 16, "{}", sets.len());
    for (name, set) in &sets {
        let policy = &policies[name]["spec"];
        let both = serde_json::json!(["Ingress", "Egress"]);
        assert_eq!(policy["policyTypes"], both, "{name}");
        let labels = &set["spec"]["selector"]["matchLabels"];
        assert_eq!(&policy["podSelector"]["matchLabels"], labels, "{name}");
        for rule in policy["ingress"].as_array().unwrap() {
            assert!(
                rule["from"].is_array(),
                "{name} is open to every namespace: {rule}"
            );
        }
        let text = set.to_string();
        let is_client = text.contains("\"name\":\"redis\"") && name != "redis";
        if is_client {
            let to = policy["egress"].to_string();
            assert!(to.contains("6379"), "{name}: {to}");
        }
    }
    // The role that fetches addresses of others reaches public ones only.
    let egress = policies["fleet-worker"]["spec"]["egress"].to_string();
    for inside in ["169.254.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "fc00::/7"] {
        assert!(egress.contains(inside), "{inside}: {egress}");
    }
    assert!(
        !policies["api"]["spec"]["egress"]
            .to_string()
            .contains("0.0.0.0/0")
    );
}

/// Creates each Secret that the manifests name, once.
#[test]
fn the_script_creates_every_secret_that_pods_need() {
    let folder = tempfile::tempdir().unwrap();
    // A kubectl that keeps Secrets as files.
    let kubectl = folder.path().join("kubectl");
    let stand_in = "#!/bin/sh
cd \"$(dirname \"$0\")\"
case \"$*\" in
  *jsonpath*) sed -n 's/^RABBITMQ_PASSWORD=//p' \"secret-$5\" | base64 -w0 ;;
  *create*) cat >\"secret-$6\" ;;
  *get*) test -e \"secret-$5\" ;;
esac
";
    fs::write(&kubectl, stand_in).unwrap();
    let run = || {
        let path = format!(
            "{}:{}",
            folder.path().display(),
            std::env::var("PATH").unwrap()
        );
        Command::new("chmod")
            .arg("+x")
            .arg(&kubectl)
            .status()
            .unwrap();
        let script = deploy().join("k8s/secrets.sh");
        let output = Command::new("sh")
            .arg(script)
            .args(["--namespace", "apps"])
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run();
    let secrets = || -> BTreeMap<String, String> {
        let entries = folder
            .path()
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries
            .filter_map(|path| {
                let name = path
                    .file_name()?
                    .to_str()?
                    .strip_prefix("secret-")?
                    .to_owned();
                Some((name, fs::read_to_string(path).ok()?))
            })
            .collect()
    };
    let first = secrets();
    let password = first["rabbitmq"]
        .lines()
        .next()
        .unwrap()
        .split_once('=')
        .unwrap()
        .1;
    assert!(first["rabbitmq-client"].contains(&format!("towpath:{password}@rabbitmq")));
    run();
    assert_eq!(secrets(), first);
    for file in deploy().join("k8s").read_dir().unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let named = text.split("secretRef:\n").skip(1).map(|rest| {
            let mut lines = rest.lines().map(str::trim);
            (lines.next().unwrap(), lines.next())
        });
        for (name, next) in named {
            let name = name.strip_prefix("name: ").unwrap();
            assert!(
                next == Some("optional: true") || first.contains_key(name),
                "{name}"
            );
        }
    }
}
