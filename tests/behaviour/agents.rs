//! The operator's own identity from the agents of its node: EKS Pod Identity, and the instance metadata service.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use testbed::aws::AccessKey;
use testbed::bed::{ACCOUNT, Bed, Launch};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::demand::{log_lines, registry_until, spec};
use super::{OWN, bed, launch};

/// What an agent was asked: the first lines of requests.
type Asked = Arc<std::sync::Mutex<Vec<String>>>;

/// An agent that hands out a session of the operator's role; returns its port.
async fn agent(bed: &Bed) -> (u16, Asked) {
    let session = bed.aws.start_session(&bed.role, "agent", Duration::from_secs(3600)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, asked) = (listener.local_addr().unwrap().port(), Asked::default());
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, session.clone(), log.clone()));
        }
    });
    (port, asked)
}

async fn serve(stream: TcpStream, session: AccessKey, asked: Asked) {
    let mut stream = BufReader::new(stream);
    let (mut first, mut allowed) = (String::new(), false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        let lower = line.to_lowercase();
        allowed |=
            lower.starts_with("authorization: pod-token") || lower.starts_with("x-aws-ec2-metadata-token: node-token");
        if first.is_empty() {
            first = line;
        }
    }
    asked.lock().unwrap().push(first.clone());
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let keys = json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": session.id, "SecretAccessKey": session.secret, "Token": session.session_token,
        "Expiration": k8s_openapi::jiff::Timestamp::now().checked_add(k8s_openapi::jiff::SignedDuration::from_hours(1)).unwrap().to_string(),
    });
    let (status, body) = match path.trim_end_matches('/') {
        "/latest/api/token" => ("200 OK", "node-token".to_owned()),
        _ if !allowed => ("401 Unauthorized", String::new()),
        "/latest/meta-data/iam/security-credentials" => ("200 OK", "node-role".to_owned()),
        "/pod" | "/latest/meta-data/iam/security-credentials/node-role" => ("200 OK", keys.to_string()),
        _ => ("404 Not Found", String::new()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.into_inner().write_all(answer.as_bytes()).await;
}

/// Without a web identity.
fn bare() -> Launch {
    launch().env("AWS_ROLE_ARN", "").env("AWS_WEB_IDENTITY_TOKEN_FILE", "")
}

#[tokio::test]
async fn eks_pod_identity_serves_the_operator() {
    let bed = bed("pod-identity").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let (port, asked) = agent(&bed).await;
    let file = bed.dir().join("pod-token");
    std::fs::write(&file, "pod-token").unwrap();
    let launch = bare()
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("http://127.0.0.1:{port}/pod"))
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap());
    let operator = bed.operator(launch.args(&["--require-workload-identity"])).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert!(asked.lock().unwrap().iter().all(|line| line.starts_with("GET /pod ")), "{asked:?}");
    let (_, metrics) = operator.get("/metrics").await.unwrap();
    assert!(metrics.contains("aws_identity{source=\"container\"} 1\n"), "{metrics}");
    assert_eq!(log_lines(&operator, "found the operator's AWS identity source=\"container\""), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// An agent that gives nothing away, and answers with the status that is set; returns its port.
async fn refusing_agent(status: Arc<std::sync::Mutex<&'static str>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap_or(0) > 0 && !line.trim().is_empty() {
                line.clear();
            }
            let head = *status.lock().unwrap();
            let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.into_inner().write_all(answer.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn what_the_agent_of_pod_identity_refuses_is_not_blamed_on_the_network() {
    let bed = bed("pod-refused").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let status = Arc::new(std::sync::Mutex::new("400 Bad Request"));
    let port = refusing_agent(status.clone()).await;
    let agent = bare().env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("http://127.0.0.1:{port}/pod"));
    let operator = bed.operator(agent).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let advice = "deploy/iam/trust-pod-identity.json";
    assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(advice).is_file());
    for (answer, reason, words) in [
        ("400 Bad Request", "NoCredentials", ["400", "association", "eks-pod-identity-agent", advice]),
        ("404 Not Found", "NoCredentials", ["404", "association", "eks-pod-identity-agent", advice]),
        ("429 Too Many Requests", "Throttled", ["429", "Pod Identity", "", ""]),
        ("503 Service Unavailable", "AwsUnavailable", ["503", "Pod Identity", "eks-pod-identity-agent", ""]),
    ] {
        *status.lock().unwrap() = answer;
        registry_until(&bed, &name, 0, reason, &words).await;
    }
    assert_eq!(log_lines(&operator, "found the operator's AWS identity"), 0);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn the_nodes_role_serves_the_operator_unless_a_workload_identity_is_required() {
    let bed = bed("node").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let (port, asked) = agent(&bed).await;
    let node = || {
        bare()
            .env("AWS_EC2_METADATA_DISABLED", "false")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &format!("http://127.0.0.1:{port}"))
    };
    let (key, secret) = ("AKIATESTBEDTESTBED00", "secret-key-of-the-testbed-user-0123456789");
    bed.aws.add_user(key, secret, ACCOUNT);
    let file = bed.dir().join("aws-config");
    std::fs::write(&file, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")).unwrap();
    let keys = node().env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret);
    let profile = node().env("AWS_CONFIG_FILE", file.to_str().unwrap());
    for (kind, launch) in [("keys", keys), ("profile", profile), ("node", node())] {
        let strict = bed.operator(launch.args(&["--require-workload-identity"])).await.unwrap();
        let name = bed.credential(kind, spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
        let words = ["eks.amazonaws.com/role-arn", "--require-workload-identity"];
        registry_until(&bed, &name, 0, "NoCredentials", &words).await;
        assert_eq!(log_lines(&strict, "found the operator's AWS identity"), 0, "{kind}");
        assert!(bed.secret(&a).await.unwrap().is_none(), "{kind}");
        bed.credentials().delete(&name, &Default::default()).await.unwrap();
        strict.stop().await.unwrap();
    }
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let credentials = |line: &String| line.contains("security-credentials");
    assert!(!asked.lock().unwrap().iter().any(credentials), "{asked:?}");
    let operator = bed.operator(node()).await.unwrap();
    bed.logins_until(&a, &[OWN]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert!(asked.lock().unwrap().iter().any(credentials));
    let (_, metrics) = operator.get("/metrics").await.unwrap();
    assert!(metrics.contains("aws_identity{source=\"node\"} 1\n"), "{metrics}");
    assert_eq!(log_lines(&operator, "found the operator's AWS identity source=\"node\""), 1);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
