//! What an operator measures: every service tells at `/metrics` what it does, and at `/healthz` whether it can.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::system;

pub(crate) async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_is_healthy_and_can_be_measured() {
    let system = system().await;
    let client = system.operator().await;
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": 0.1 })).await;
    client.result("hub", &op_id).await;
    let urls = system.ready().metrics;
    for name in
        ["registry", "scheduler", "host-backup-0", "host-backup-1", "copy-applier-0", "copy-applier-1"]
    {
        let address = urls[name].strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
        let metrics = get(address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200 ") && metrics.contains("# TYPE "), "{name}: {metrics}");
        let health = get(address, "/healthz").await;
        assert!(health.starts_with("HTTP/1.1 200 "), "{name}: {health}");
        if name == "registry" {
            assert!(metrics.contains(r#"kind="test-sleep""#), "{metrics}");
        }
    }
}
