//! The feed: every event of every order, as it happens, over a WebSocket.

use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code},
    },
    response::Response,
};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{App, Event};

pub(super) async fn serve(State(app): State<App>, upgrade: WebSocketUpgrade) -> Response {
    // Subscribed before the answer: what happens once the client knows of it is in the feed.
    let events = app.saga.events();
    upgrade.on_upgrade(move |socket| send(socket, events, app.stop))
}

async fn send(mut socket: WebSocket, mut events: Receiver<Event>, stop: CancellationToken) {
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => close(close_code::AWAY, "this instance stops"),
            event = events.recv() => match event {
                Ok(event) => match serde_json::to_string(&event) {
                    Ok(text) => Message::text(text),
                    Err(_) => continue,
                },
                // A gap that the reader does not know of would be worse than an end.
                Err(RecvError::Lagged(_)) => close(close_code::POLICY, "this reader is too slow"),
                Err(RecvError::Closed) => close(close_code::AWAY, "this instance stops"),
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let last = matches!(message, Message::Close(_));
        if socket.send(message).await.is_err() || last {
            return;
        }
    }
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}
