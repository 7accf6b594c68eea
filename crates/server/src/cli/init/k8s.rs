//! Kubernetes: one file for each role, which can be applied alone.
//!
//! Each role is a StatefulSet: a pod owns its volume (output file, journal, token), so scaling in loses nothing and two
//! pods never write one file.

use std::fmt::Write;

/// The scaler of a role.
pub(super) struct Scaled {
    /// The metric of the backlog, and its selector.
    pub(super) metric: &'static str,
    pub(super) label: &'static str,
    value: &'static str,
    /// The variable that says another value.
    variable: &'static str,
    /// Backlog that one pod is for.
    pub(super) target: u32,
    pub(super) most: u32,
}

impl Scaled {
    /// The queue or stream whose backlog counts.
    pub(super) fn value(&self, settings: &[(String, String)]) -> String {
        let setting = settings.iter().find(|(name, _)| name == self.variable);
        setting.map_or(self.value, |(_, value)| value).to_owned()
    }
}

/// A server beside the roles.
pub(super) struct Server {
    /// Its name as a Service, and as a label of its pods.
    name: &'static str,
    pub(super) port: u16,
    /// The Secret with what its clients need.
    pub(super) secret: Option<&'static str>,
}

/// One role in a cluster.
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) roles: &'static str,
    pub(super) replicas: u32,
    pub(super) env: &'static [(&'static str, &'static str)],
    pub(super) needs: &'static [Server],
    /// Whether it calls addresses that users or operators name.
    pub(super) is_caller: bool,
    pub(super) ports: &'static [(&'static str, u16)],
    pub(super) scaled: Option<Scaled>,
}

impl Workload {
    /// Secrets without which a pod does not start: those of its servers, and the key that the fleet shares.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &'static str> {
        let fleet = self.roles.starts_with("fleet.").then_some("fleet");
        let servers = self.needs.iter().filter_map(|server| server.secret);
        servers.chain(fleet)
    }
}

const REDIS: (&str, &str) = ("REDIS_ADDR", "redis:6379");
const KAFKA: (&str, &str) = ("KAFKA_BROKERS", "kafka:9092");

const fn server(name: &'static str, port: u16, secret: Option<&'static str>) -> Server {
    Server { name, port, secret }
}

const REDIS_SERVER: Server = server("redis", 6379, Some("redis"));
/// Its Secret has the URL, of which the password is a part.
const RABBITMQ_SERVER: Server = server("rabbitmq", 5672, Some("rabbitmq-client"));
const KAFKA_SERVER: Server = server("kafka", 9092, None);
const POSTGRES_SERVER: Server = server("postgres", 5432, Some("postgres"));
const CONTROLLER_SERVER: Server = server("controller", 6001, None);
const WORKER_SERVER: Server = server("fleet-worker", 6002, None);

const DATABASE: (&str, &str) = ("DB_HOST", "postgres");

pub(super) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "api",
        roles: "ingest.api",
        replicas: 2,
        env: &[REDIS],
        needs: &[REDIS_SERVER],
        is_caller: false,
        ports: &[("http", 8080)],
        scaled: None,
    },
    Workload {
        name: "worker",
        roles: "ingest.worker",
        replicas: 1,
        env: &[REDIS, ("OUTPUT_PATH", "/data/processed.log")],
        needs: &[REDIS_SERVER],
        is_caller: true,
        ports: &[],
        scaled: Some(Scaled {
            metric: "towpath_queue_ready_messages",
            label: "queue",
            value: "messages",
            variable: "TOWPATH_INGEST__QUEUE",
            target: 1_000,
            most: 8,
        }),
    },
    Workload {
        name: "gateway",
        roles: "orders.gateway",
        replicas: 2,
        env: &[REDIS],
        needs: &[REDIS_SERVER, RABBITMQ_SERVER],
        is_caller: false,
        ports: &[("http", 8080)],
        scaled: None,
    },
    Workload {
        name: "processor",
        roles: "orders.processor",
        replicas: 1,
        env: &[REDIS],
        needs: &[REDIS_SERVER, RABBITMQ_SERVER],
        is_caller: false,
        ports: &[],
        scaled: Some(Scaled {
            metric: "towpath_queue_ready_messages",
            label: "queue",
            value: "orders.queue",
            variable: "",
            target: 1_000,
            most: 8,
        }),
    },
    Workload {
        name: "notifier",
        roles: "orders.notifier",
        replicas: 1,
        env: &[REDIS],
        needs: &[REDIS_SERVER, RABBITMQ_SERVER],
        is_caller: true,
        ports: &[],
        scaled: None,
    },
    Workload {
        name: "dashboard",
        roles: "orders.dashboard",
        replicas: 1,
        env: &[REDIS],
        needs: &[REDIS_SERVER, RABBITMQ_SERVER],
        is_caller: false,
        ports: &[("http", 8081)],
        scaled: None,
    },
    Workload {
        name: "reader",
        roles: "lines.reader",
        replicas: 1,
        env: &[REDIS, ("INPUT_PATH", "/data/input.txt")],
        needs: &[REDIS_SERVER],
        is_caller: false,
        ports: &[("http", 8080)],
        scaled: None,
    },
    Workload {
        name: "writer",
        roles: "lines.writer",
        replicas: 2,
        env: &[REDIS, ("OUTPUT_PATH", "/data/output.txt")],
        needs: &[REDIS_SERVER],
        is_caller: false,
        ports: &[("http", 8080)],
        scaled: Some(Scaled {
            metric: "towpath_stream_lag_messages",
            label: "stream",
            value: "line_stream",
            variable: "TOWPATH_LINES__STREAM",
            target: 10_000,
            most: 8,
        }),
    },
    Workload {
        name: "unified-server",
        roles: "accounts.api",
        replicas: 2,
        env: &[REDIS, DATABASE],
        needs: &[REDIS_SERVER, POSTGRES_SERVER],
        is_caller: false,
        ports: &[("http", 8080)],
        scaled: None,
    },
    Workload {
        name: "relay",
        roles: "accounts.relay",
        replicas: 2,
        env: &[KAFKA, DATABASE],
        needs: &[KAFKA_SERVER, POSTGRES_SERVER],
        is_caller: false,
        ports: &[],
        scaled: None,
    },
    Workload {
        name: "controller",
        roles: "fleet.controller",
        replicas: 1,
        env: &[("CONTROLLER_DB_PATH", "/data/controller.db")],
        needs: &[],
        is_caller: false,
        ports: &[("http", 6001)],
        scaled: None,
    },
    Workload {
        name: "agent",
        roles: "fleet.agent",
        replicas: 1,
        env: &[
            ("CONTROLLER_URL", "http://controller:6001"),
            (
                "WORKER_URL",
                "http://fleet-worker-0.fleet-worker-pods:6002,http://fleet-worker-1.fleet-worker-pods:6002",
            ),
        ],
        needs: &[CONTROLLER_SERVER, WORKER_SERVER],
        is_caller: false,
        ports: &[],
        scaled: None,
    },
    Workload {
        name: "fleet-worker",
        roles: "fleet.worker",
        replicas: 2,
        env: &[("REDIS_HOST", "redis")],
        needs: &[REDIS_SERVER],
        is_caller: true,
        ports: &[("http", 6002)],
        scaled: None,
    },
];

/// Each file's name and text; `settings` are lines of `NAME: "value"`.
pub(super) fn files(settings: &[(String, String)]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = WORKLOADS
        .iter()
        .map(|one| (format!("k8s/{}.yaml", one.name), workload(one, settings)))
        .collect();
    for (name, text) in [
        ("redis", include_str!("redis.yaml")),
        ("rabbitmq", include_str!("rabbitmq.yaml")),
        ("postgres", include_str!("postgres.yaml")),
        ("kafka", include_str!("kafka.yaml")),
        ("lines-example", include_str!("lines-example.yaml")),
    ] {
        all.push((format!("k8s/{name}.yaml"), text.to_owned()));
    }
    let secrets = include_str!("secrets.sh").to_owned();
    all.push(("k8s/secrets.sh".to_owned(), secrets));
    all.push(("prometheus/adapter.yaml".to_owned(), adapter()));
    all
}

/// ScaledObjects instead of the HorizontalPodAutoscalers: a cluster has one of the two.
pub(super) fn keda(settings: &[(String, String)]) -> Vec<(String, String)> {
    WORKLOADS
        .iter()
        .filter_map(|one| {
            let scaled = one.scaled.as_ref()?;
            let text = format!(
                "# Instead of the HorizontalPodAutoscaler of k8s/{name}.yaml. At least one pod runs, because it exports the metric.
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {name}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: StatefulSet
    name: {name}
  minReplicaCount: {least}
  maxReplicaCount: {most}
  pollingInterval: 15
  cooldownPeriod: 300
  fallback:
    failureThreshold: 4
    replicas: 2
    behavior: currentReplicasIfHigher
  triggers:
    - type: prometheus
      metadata:
        serverAddress: http://prometheus.monitoring:9090
        query: {query}
        threshold: \"{target}\"
",
                name = one.name,
                least = one.replicas,
                most = scaled.most,
                target = scaled.target,
                query = query(scaled, settings),
            );
            Some((format!("keda/{}.yaml", one.name), text))
        })
        .collect()
}

/// Every pod reports the same backlog, so it is the largest and never the sum.
fn query(scaled: &Scaled, settings: &[(String, String)]) -> String {
    let value = serde_json::json!(scaled.value(settings));
    let query = format!("max({}{{{}={value}}})", scaled.metric, scaled.label);
    serde_json::json!(query).to_string()
}

/// The rules of the Prometheus Adapter that make the backlogs external metrics.
fn adapter() -> String {
    let mut text = "# Values for the Prometheus Adapter: `helm upgrade -f`. Every pod reports the same backlog, so `max`.
rules:
  external:
"
    .to_owned();
    for (metric, by) in [
        ("towpath_queue_ready_messages", "queue"),
        ("towpath_stream_lag_messages", "stream"),
    ] {
        writeln!(
            text,
            "    - seriesQuery: {metric}
      resources: {{namespaced: false}}
      name: {{as: {metric}}}
      metricsQuery: max by ({by}) (<<.Series>>{{<<.LabelMatchers>>}})"
        )
        .expect("writing to a string cannot fail");
    }
    text
}

/// Outgoing rules of a role: names, its servers, and public addresses when it is a caller.
fn egress(one: &Workload) -> String {
    let mut text = "  # Add what else the configuration names: servers elsewhere, webhooks inside, traces, an identity provider.
  egress:
    - ports:
        - port: 53
          protocol: UDP
        - port: 53
"
    .to_owned();
    for Server { name, port, .. } in one.needs {
        write!(
            text,
            "    - to:
        - podSelector:
            matchLabels:
              app.kubernetes.io/name: {name}
      ports:
        - port: {port}
"
        )
        .expect("writing to a string cannot fail");
    }
    if one.is_caller {
        text.push_str("    # Public addresses only: no private ones, and not the cloud's metadata.\n    - to:\n");
        for (all, inside) in [("0.0.0.0/0", PRIVATE_4), ("::/0", PRIVATE_6)] {
            write!(
                text,
                "        - ipBlock:
            cidr: {all}
            except: {}
",
                serde_json::json!(inside)
            )
            .expect("writing to a string cannot fail");
        }
    }
    text
}

/// Addresses that are not of the public network. Source: the special-purpose address registries of IANA.
pub(super) const PRIVATE_4: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
];
pub(super) const PRIVATE_6: &[&str] = &[
    "::/127",
    "64:ff9b::/96",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

fn workload(one: &Workload, settings: &[(String, String)]) -> String {
    let Workload { name, roles, .. } = one;
    let version = env!("CARGO_PKG_VERSION");
    let mut text = String::new();
    let mut put = |part: String| text.push_str(&part);
    put(format!(
        "apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}
  labels:
    app.kubernetes.io/name: {name}
    app.kubernetes.io/part-of: towpath
data:
  TOWPATH_DATA__DIR: /data
  TOWPATH_SERVER__ADMIN: \":7070\"
"
    ));
    let own = one.env.iter().chain(&[("TOWPATH_LOG__FORMAT", "json")]);
    let own = own.map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let mut all: std::collections::BTreeMap<String, String> = own.collect();
    all.extend(super::inside(settings));
    for (name, value) in all {
        put(format!("  {name}: {}\n", serde_json::json!(value)));
    }
    put(format!(
        "---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {name}
  labels:
    app.kubernetes.io/name: {name}
    app.kubernetes.io/part-of: towpath
spec:
  serviceName: {name}-pods
{replicas}  podManagementPolicy: Parallel
  selector:
    matchLabels:
      app.kubernetes.io/name: {name}
  template:
    metadata:
      labels:
        app.kubernetes.io/name: {name}
        app.kubernetes.io/part-of: towpath
      annotations:
        prometheus.io/scrape: \"true\"
        prometheus.io/port: \"7070\"
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      # Longer than server.drain, so that in-flight work is drained.
      terminationGracePeriodSeconds: 60
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              app.kubernetes.io/name: {name}
      containers:
        - name: towpath
          image: towpath:{version}
          args: [\"run\", \"{roles}\"]
          envFrom:
            - configMapRef:
                name: {name}
{secrets}            # Passwords and keys of this role alone: they override the variables above.
            - secretRef:
                name: {name}
                optional: true
          ports:
            - name: admin
              containerPort: 7070
",
        secrets = one.secrets().fold(String::new(), |text, secret| {
            format!("{text}            - secretRef:\n                name: {secret}\n")
        }),
        replicas = match one.scaled {
            // The autoscaler's number is not taken back by applying this again.
            Some(_) => String::new(),
            None => format!("  replicas: {}\n", one.replicas),
        },
    ));
    for (port, number) in one.ports {
        put(format!(
            "            - name: {port}\n              containerPort: {number}\n"
        ));
    }
    put("          startupProbe:
            httpGet:
              path: /livez
              port: admin
            periodSeconds: 2
            failureThreshold: 150
          livenessProbe:
            httpGet:
              path: /livez
              port: admin
            periodSeconds: 10
          readinessProbe:
            httpGet:
              path: /readyz
              port: admin
            periodSeconds: 5
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [\"ALL\"]
          resources:
            requests:
              cpu: 100m
              memory: 64Mi
            limits:
              memory: 512Mi
          volumeMounts:
            - name: data
              mountPath: /data
            - name: tmp
              mountPath: /tmp
      volumes:
        - name: tmp
          emptyDir:
            sizeLimit: 64Mi
  persistentVolumeClaimRetentionPolicy:
    whenDeleted: Retain
    whenScaled: Retain
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: [\"ReadWriteOnce\"]
        resources:
          requests:
            storage: 1Gi
"
    .to_owned());
    put(format!(
        "---
# Names of single pods.
apiVersion: v1
kind: Service
metadata:
  name: {name}-pods
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    app.kubernetes.io/name: {name}
  ports:
    - name: admin
      port: 7070
      targetPort: admin
"
    ));
    for (port, number) in one.ports {
        put(format!(
            "---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector:
    app.kubernetes.io/name: {name}
  ports:
    - name: {port}
      port: {number}
      targetPort: {port}
"
        ));
    }
    put(format!(
        "---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {name}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      app.kubernetes.io/name: {name}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: {name}
  policyTypes: [\"Ingress\", \"Egress\"]
  ingress:
    # Metrics and probes; any other request needs the token of the pod.
    - from:
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: monitoring
      ports:
        - port: admin
"
    ));
    for (port, _) in one.ports {
        put(format!(
            "    # Pods of this namespace, and of those that are labelled as its clients: an ingress controller, other apps.
    - from:
        - podSelector: {{}}
        - namespaceSelector:
            matchLabels:
              towpath-client: \"true\"
      ports:
        - port: {port}
"
        ));
    }
    put(egress(one));
    if let Some(scaled) = &one.scaled {
        let value = serde_json::json!(scaled.value(settings));
        let label = scaled.label;
        put(format!(
            "---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {name}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: StatefulSet
    name: {name}
  minReplicas: {least}
  maxReplicas: {most}
  metrics:
    - type: External
      external:
        metric:
          name: {metric}
          selector:
            matchLabels:
              {label}: {value}
        target:
          type: AverageValue
          averageValue: \"{target}\"
  behavior:
    scaleUp:
      policies:
        - type: Percent
          value: 100
          periodSeconds: 15
    scaleDown:
      stabilizationWindowSeconds: 300
      policies:
        - type: Percent
          value: 10
          periodSeconds: 60
",
            least = one.replicas,
            most = scaled.most,
            metric = scaled.metric,
            target = scaled.target,
        ));
    }
    text
}
