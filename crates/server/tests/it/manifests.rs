//! Every Kubernetes manifest read into the type of its kind, where a field that the type does not know is a slip, and
//! by the validator of Kubernetes with its own schemas and those of KEDA and the Prometheus Operator.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use towpath_testkit::servers::made;

use crate::deploy::is_there;
use crate::process::able;

/// KEDA's object, as far as ours use it. Source: KEDA 2.18, `scaledobjects.keda.sh`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked only")]
struct ScaledObject {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: ScaledObjectSpec,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read to be checked only")]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked only")]
struct ScaledObjectSpec {
    scale_target_ref: ScaleTarget,
    min_replica_count: u32,
    max_replica_count: u32,
    polling_interval: u32,
    cooldown_period: u32,
    fallback: Fallback,
    triggers: Vec<Trigger>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked only")]
struct ScaleTarget {
    api_version: String,
    kind: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked only")]
struct Fallback {
    failure_threshold: u32,
    replicas: u32,
    behavior: String,
}

/// Values of a trigger are texts, numbers too.
#[derive(Deserialize)]
#[expect(dead_code, reason = "read to be checked only")]
struct Trigger {
    r#type: String,
    metadata: BTreeMap<String, String>,
}

/// The fields of a document that its type does not know, or why it is not one of that type.
fn slips<T: DeserializeOwned>(document: &Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    let read: Result<T, _> =
        serde_ignored::deserialize(document, |path| unknown.push(path.to_string()));
    read.map(|_| unknown).map_err(|error| error.to_string())
}

fn slips_of(document: &Value) -> Result<Vec<String>, String> {
    let text = |name: &str| document[name].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("apps/v1", "Deployment") => slips::<Deployment>(document),
        ("apps/v1", "StatefulSet") => slips::<StatefulSet>(document),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => slips::<HorizontalPodAutoscaler>(document),
        ("keda.sh/v1alpha1", "ScaledObject") => slips::<ScaledObject>(document),
        ("networking.k8s.io/v1", "NetworkPolicy") => slips::<NetworkPolicy>(document),
        ("policy/v1", "PodDisruptionBudget") => slips::<PodDisruptionBudget>(document),
        ("v1", "ConfigMap") => slips::<ConfigMap>(document),
        ("v1", "Secret") => slips::<Secret>(document),
        ("v1", "Service") => slips::<Service>(document),
        (version, kind) => Err(format!("no type is known for `{version}` `{kind}`")),
    }
}

pub(crate) fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|one| serde_saphyr::from_str(one).unwrap())
        .collect()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(folder);
    let entries = folder.read_dir().unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let is_manifest = |file: &PathBuf| file.extension().is_some_and(|end| end == "yaml");
    files.filter(is_manifest).collect()
}

#[test]
fn every_manifest_is_of_its_kind_and_says_nothing_else() {
    let mut count = 0;
    for file in files("k8s").into_iter().chain(files("keda")) {
        for document in documents(&std::fs::read_to_string(&file).unwrap()) {
            count += 1;
            let found = slips_of(&document);
            assert_eq!(found, Ok(Vec::new()), "{}", file.display());
        }
    }
    assert!(count > 80, "{count} documents");
}

/// The servers that roles name are there to be applied beside them, and the fleet has one key.
#[test]
fn the_dependencies_of_a_role_are_among_the_manifests() {
    let all: Vec<Value> = files("k8s")
        .iter()
        .flat_map(|file| documents(&std::fs::read_to_string(file).unwrap()))
        .collect();
    let of = |kind: &str| {
        let kind = kind.to_owned();
        all.iter().filter(move |one| one["kind"] == kind.as_str())
    };
    let services: Vec<&str> = of("Service")
        .filter_map(|one| one["metadata"]["name"].as_str())
        .collect();
    let mut named = 0;
    for map in of("ConfigMap") {
        for (variable, value) in map["data"].as_object().unwrap() {
            let value = value.as_str().unwrap();
            for host in ["redis", "rabbitmq", "postgres", "kafka", "controller"] {
                let is_named = value == host
                    || value.contains(&format!("{host}:"))
                    || value.contains(&format!("@{host}"));
                named += usize::from(is_named);
                assert!(!is_named || services.contains(&host), "{variable}: {value}");
            }
        }
    }
    assert!(named > 12, "{named}");
    for set in of("StatefulSet") {
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let is_of_fleet = container["args"][1]
            .as_str()
            .unwrap_or_default()
            .starts_with("fleet.");
        let secrets = container["envFrom"].as_array().into_iter().flatten();
        let mut key = secrets.filter(|from| from["secretRef"]["name"] == "fleet");
        let is_required = key.any(|from| from["secretRef"]["optional"] != true);
        assert_eq!(is_required, is_of_fleet, "{}", set["metadata"]["name"]);
    }
}

/// The pods of all roles are alike, apart from name, image, arguments, secrets and ports.
#[test]
fn pods_of_all_roles_are_alike() {
    let mut pods: Vec<(String, Value)> = Vec::new();
    for file in files("k8s") {
        for set in documents(&std::fs::read_to_string(&file).unwrap()) {
            let pod = &set["spec"]["template"]["spec"];
            let container = &pod["containers"][0];
            let image = container["image"].as_str().unwrap_or_default();
            if set["kind"] != "StatefulSet" || !image.starts_with("towpath:") {
                continue;
            }
            let name = set["metadata"]["name"].as_str().unwrap();
            let named = pod.to_string().replace(&format!("\"{name}\""), "\"NAME\"");
            let mut pod: Value = serde_json::from_str(&named).unwrap();
            let container = pod["containers"][0].as_object_mut().unwrap();
            for own in ["args", "envFrom", "ports"] {
                container.remove(own).unwrap();
            }
            pods.push((name.to_owned(), pod));
        }
    }
    assert!(pods.len() > 12, "{}", pods.len());
    for (name, pod) in &pods {
        assert_eq!(pod, &pods[0].1, "{name} and {}", pods[0].0);
    }
}

#[test]
fn a_slip_in_a_manifest_is_found() {
    let file = files("k8s")
        .into_iter()
        .find(|file| file.ends_with("writer.yaml"))
        .unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    for (right, wrong) in [
        ("readOnlyRootFilesystem", "readonlyRootFilesystem"),
        ("containerPort: 7070", "containerPort: admin"),
        ("maxUnavailable", "maxUnavailble"),
        ("kind: Service\n", "kind: Servise\n"),
    ] {
        assert!(text.contains(right), "{right}");
        let broken = documents(&text.replace(right, wrong));
        let is_found = |document| slips_of(document) != Ok(Vec::new());
        assert!(broken.iter().any(is_found), "{wrong}");
    }
}

/// Whether the validator is here, and the schemas that are not Kubernetes' own.
pub(crate) fn can_validate() -> bool {
    is_there("kubectl-validate") && made("crds").exists()
}

/// Complaints of the validator about the manifests of a folder.
pub(crate) fn refused(folder: &Path) -> Option<String> {
    let mut validate = Command::new("kubectl-validate");
    let output = validate
        .arg("--local-crds")
        .arg(made("crds"))
        .arg(folder)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (!output.status.success()).then(|| String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn kubernetes_takes_every_manifest_and_no_slip() {
    if !able("kubectl-validate", can_validate()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for file in files("k8s").iter().chain(&files("keda")) {
        let kind = file.parent().unwrap().file_name().unwrap();
        let name = format!("{}-{}", kind.display(), file.file_name().unwrap().display());
        std::fs::copy(file, folder.path().join(name)).unwrap();
    }
    assert_eq!(refused(folder.path()), None);
    for (file, right, wrong) in [
        ("k8s-writer.yaml", "maxUnavailable", "maxUnavailble"),
        (
            "keda-writer.yaml",
            "minReplicaCount: 2",
            "minReplicaCount: one",
        ),
    ] {
        let file = folder.path().join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(right), "{right}");
        std::fs::write(&file, text.replace(right, wrong)).unwrap();
        assert!(refused(folder.path()).is_some(), "{wrong}");
        std::fs::write(&file, text).unwrap();
    }
}
