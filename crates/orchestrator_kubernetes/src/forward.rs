//! Ports inside a pod, through the API server.
//!
//! What must hold: dropping the connection ends it. Not here: ending one direction alone, which Kubernetes' port-forward has
//! no word for; the pod sees the end when the whole connection ends.

use crate::cluster::{Cluster, failed};
use arco_orchestrator::{Connection, Error};
use k8s_openapi::api::core::v1::Pod;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Connects to a port of a pod.
pub(crate) async fn connect(cluster: &Cluster, namespace: &str, pod: &str, port: u16) -> Result<Connection, Error> {
    let step = || format!("connect to port {port} of {pod}");
    let mut forwarder =
        cluster.typed::<Pod>(namespace).portforward(pod, &[port]).await.map_err(|it| failed(step(), &it))?;
    let (Some(stream), Some(error)) = (forwarder.take_stream(port), forwarder.take_error(port)) else {
        return Err(Error::failed(step(), "the cluster gave no stream"));
    };
    let (tell, failure) = oneshot::channel();
    let pod = pod.to_owned();
    tokio::spawn(async move {
        if let Some(why) = error.await {
            let why = match why.contains("connection refused") {
                true => format!("nothing listens on port {port} inside {pod}"),
                false => format!("port {port} inside {pod} cannot be connected to: {}", why.trim()),
            };
            let _ = tell.send(why); // nobody may listen
        }
    });
    Ok(Connection { stream: Box::new(Whole(stream)), failure })
}

/// A stream whose writing half is not ended alone: the end would close all of it.
struct Whole<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Whole<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Whole<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
}
