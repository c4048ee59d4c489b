use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};

/// An S3 server on a directory, inside this process; it ends when dropped.
pub(crate) struct EmbeddedS3 {
    pub(crate) endpoint: String,
    directory: tempfile::TempDir,
    accepting: JoinHandle<()>,
}

impl EmbeddedS3 {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = s3s_fs::FileSystem::new(directory.path()).unwrap();
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let service = service.build();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                // Without it each answer waits for an acknowledgement of its head: 44 s instead of 1.
                socket.set_nodelay(true).unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that goes away is no error of the server.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { endpoint, directory, accepting }
    }

    /// Where a bucket has its objects.
    pub(crate) fn directory_of(&self, bucket: &str) -> PathBuf {
        self.directory.path().join(bucket)
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
