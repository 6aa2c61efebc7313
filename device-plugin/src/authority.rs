//! I/O: connections of the kubelet's plugin watcher, made acceptable.
//!
//! Its client (`pluginmanager/operationexecutor`) sends the path of the socket as `:authority`, which is none by RFC 3986, and the server that we use
//! refuses such a request before anybody sees it (the client of the device manager sends `localhost` since Kubernetes 1.26 for that reason). So each
//! `:authority` that arrives is replaced by `localhost` before it is read. Nothing here decides by it.
//!
//! Invariant: all other bytes stay as they are. The replaced value takes the place of the sent one in the compression's table too (RFC 7541): as many
//! entries, which is what later requests count.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

const LOCALHOST: &[u8] = b"localhost";
/// The client's first bytes (RFC 9113, 3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const PADDED_OR_WITH_PRIORITY: u8 = 0x28;
/// `:authority` in the static table.
const AUTHORITY: usize = 1;

/// A connection with a readable `:authority`.
#[derive(Debug)]
pub struct Named {
    connection: UnixStream,
    rewriter: Rewriter,
    /// Bytes to be handed on.
    ready: Vec<u8>,
}

impl From<UnixStream> for Named {
    fn from(connection: UnixStream) -> Self {
        Self { connection, rewriter: Rewriter::default(), ready: Vec::new() }
    }
}

impl Connected for Named {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Named {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ready.is_empty() {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.connection).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.push(read.filled(), &mut this.ready);
        }
        let count = this.ready.len().min(into.remaining());
        into.put_slice(&this.ready[..count]);
        this.ready.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Named {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

/// What has arrived of the frame that is not whole yet.
#[derive(Debug, Default)]
struct Rewriter {
    greeted: bool,
    waiting: Vec<u8>,
}

impl Rewriter {
    /// Takes what arrived and gives the frames that are whole.
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.waiting.extend_from_slice(bytes);
        if !self.greeted {
            if self.waiting.len() < PREFACE {
                return;
            }
            out.extend(self.waiting.drain(..PREFACE));
            self.greeted = true;
        }
        while let Some(length) = frame_length(&self.waiting).filter(|length| self.waiting.len() >= *length) {
            let frame: Vec<u8> = self.waiting.drain(..length).collect();
            out.extend(rewritten(&frame).unwrap_or(frame));
        }
    }
}

fn frame_length(bytes: &[u8]) -> Option<usize> {
    let [high, middle, low] = *bytes.first_chunk::<3>()?;
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    (bytes.len() >= FRAME_HEADER).then_some(FRAME_HEADER + length)
}

/// A frame of headers with `localhost` as its `:authority`; `None` when there is nothing to replace.
fn rewritten(frame: &[u8]) -> Option<Vec<u8>> {
    let (head, block) = frame.split_at_checked(FRAME_HEADER)?;
    if head.get(3) != Some(&HEADERS) || head.get(4)? & PADDED_OR_WITH_PRIORITY != 0 {
        return None;
    }
    let mut rest = Block(block);
    let value = rest.find_authority()?;
    let before = block.len() - rest.0.len() - value;
    let mut fields = block.get(..before)?.to_vec();
    fields.push(u8::try_from(LOCALHOST.len()).ok()?);
    fields.extend_from_slice(LOCALHOST);
    fields.extend_from_slice(rest.0);
    let length = u32::try_from(fields.len()).ok()?.to_be_bytes();
    Some([&length[1..], head.get(3..)?, &fields].concat())
}

/// What is left of a block of compressed header fields (RFC 7541, 6).
struct Block<'a>(&'a [u8]);

impl Block<'_> {
    /// Goes behind the value of `:authority` and gives the length of that value with its own length before it.
    fn find_authority(&mut self) -> Option<usize> {
        loop {
            let first = *self.0.first()?;
            let (prefix, is_literal) = match first {
                0x80.. => (7, false),
                0x40.. => (6, true),
                0x20.. => (5, false),
                _ => (4, true),
            };
            let name = self.number(prefix)?;
            if !is_literal {
                continue;
            }
            if name == 0 {
                self.text()?;
            }
            let value = self.text()?;
            if name == AUTHORITY {
                return Some(value);
            }
        }
    }

    /// A number whose first byte has this many bits for it (5.1).
    fn number(&mut self, prefix: u32) -> Option<usize> {
        let most = (1_usize << prefix) - 1;
        let mut number = usize::from(self.byte()?) & most;
        if number < most {
            return Some(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Goes behind a text and gives how many bytes it took (5.2).
    fn text(&mut self) -> Option<usize> {
        let before = self.0.len();
        let length = self.number(7)?;
        self.0 = self.0.get(length..)?;
        Some(before - self.0.len())
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// POST, http, a path, an `:authority` of this many bytes, and a field by name.
    fn fields(authority: &[u8]) -> Vec<u8> {
        let mut length = vec![u8::try_from(authority.len().min(127)).unwrap()];
        if authority.len() >= 127 {
            length.push(u8::try_from(authority.len() - 127).unwrap());
        }
        [&[0x83, 0x86, 0x44, 2, b'/', b'x', 0x41], &length[..], authority, &[0x40, 2, b't', b'e', 1, b'y', 0x3f, 0xe1, 0x1f]].concat()
    }

    fn passed(input: &[u8], step: usize) -> Vec<u8> {
        let (mut rewriter, mut out) = (Rewriter::default(), Vec::new());
        input.chunks(step).for_each(|part| rewriter.push(part, &mut out));
        out
    }

    #[test]
    fn an_authority_of_any_form_becomes_localhost_and_all_else_stays() {
        let path = b"/var/lib/kubelet/plugins_registry/openshift.io_nics.sock".as_slice();
        let long = [b'x'; 140];
        for authority in [path, b"%2Fvar", b"", &long, b"localhost"] {
            let settings = frame(4, 0, &[0, 3, 0, 0, 0, 100]);
            let data = frame(0, 1, &[0; 5]);
            let input = [GREETING, &settings, &frame(HEADERS, 4, &fields(authority)), &data].concat();
            let expected = [GREETING, &settings, &frame(HEADERS, 4, &fields(LOCALHOST)), &data].concat();
            for step in [1, 7, 4096] {
                assert_eq!(passed(&input, step), expected, "{} bytes, {step} at a time", authority.len());
            }
        }
    }

    #[test]
    fn headers_without_an_authority_of_their_own_stay() {
        // In the second request of a connection it is a number in the table.
        for payload in [&[0x83, 0x86, 0xbe][..], &[], &[0x41], &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x40, 1]] {
            let input = [GREETING, &frame(HEADERS, 4, payload)].concat();
            assert_eq!(passed(&input, 5), input, "{payload:?}");
        }
        let padded = [GREETING, &frame(HEADERS, 4 | 8, &fields(b"/x"))].concat();
        assert_eq!(passed(&padded, 100), padded);
    }
}
