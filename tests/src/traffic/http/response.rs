//! One HTTP/1.1 response as it comes in, piece by piece: where it ends, and which status it had.
//! The body is passed over; what breaks the protocol is an end too, never a panic.

/// Longer heads are no answers of ours.
const HEAD: usize = 16 << 10;

/// How far a response has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is to come.
    Open,
    /// It is whole, with this status.
    Whole(u16),
    /// It is no HTTP.
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// So many bytes.
    Length(u64),
    /// A line with the size of the next chunk.
    Size,
    /// So many bytes of a chunk and its line end.
    Chunk(u64),
    /// Lines after the last chunk, up to an empty one.
    Trailer,
    /// As long as the connection.
    ToTheEnd,
}

/// A response being read.
#[derive(Debug, Default)]
pub struct Response {
    /// The head, or the present line of the body.
    line: Vec<u8>,
    status: u16,
    body: Option<Body>,
}

impl Response {
    /// Takes in what came.
    pub fn take(&mut self, mut bytes: &[u8]) -> Progress {
        if self.body.is_none() {
            let seen = self.line.len();
            self.line.extend_from_slice(bytes);
            let Some(end) = self.line.windows(4).position(|window| window == b"\r\n\r\n") else {
                return if self.line.len() > HEAD { Progress::Broken } else { Progress::Open };
            };
            let Some((status, body)) = head(&self.line[..end]) else { return Progress::Broken };
            self.status = status;
            self.body = Some(body);
            self.line.clear();
            bytes = &bytes[end + 4 - seen..];
        }
        self.take_body(bytes)
    }

    /// The connection ended: that is the end of a body of unknown length, and of no other.
    pub fn end(&self) -> Progress {
        if self.body == Some(Body::ToTheEnd) { Progress::Whole(self.status) } else { Progress::Broken }
    }

    fn take_body(&mut self, mut bytes: &[u8]) -> Progress {
        loop {
            match self.body {
                Some(Body::Length(left)) => {
                    let left = left.saturating_sub(bytes.len() as u64);
                    self.body = Some(Body::Length(left));
                    return if left == 0 { Progress::Whole(self.status) } else { Progress::Open };
                }
                Some(Body::Chunk(left)) => {
                    let taken = left.min(bytes.len() as u64);
                    bytes = &bytes[taken as usize..];
                    self.body = Some(if left == taken { Body::Size } else { Body::Chunk(left - taken) });
                    if left > taken {
                        return Progress::Open;
                    }
                }
                Some(state @ (Body::Size | Body::Trailer)) => {
                    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                        self.line.extend_from_slice(bytes);
                        return if self.line.len() > HEAD { Progress::Broken } else { Progress::Open };
                    };
                    self.line.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    let line = std::mem::take(&mut self.line);
                    let line = line.trim_ascii();
                    if state == Body::Trailer {
                        if line.is_empty() {
                            return Progress::Whole(self.status);
                        }
                        continue;
                    }
                    let size = line
                        .split(|byte| *byte == b';')
                        .next()
                        .and_then(|size| std::str::from_utf8(size).ok());
                    self.body = match size.and_then(|size| u64::from_str_radix(size.trim(), 16).ok()) {
                        Some(0) => Some(Body::Trailer),
                        Some(size) => Some(Body::Chunk(size.saturating_add(2))),
                        None => return Progress::Broken,
                    };
                }
                Some(Body::ToTheEnd) | None => return Progress::Open,
            }
        }
    }
}

/// Status and kind of body.
fn head(bytes: &[u8]) -> Option<(u16, Body)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let first = lines.next()?;
    let status = first.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let mut body = if matches!(status, 204 | 304) { Body::Length(0) } else { Body::ToTheEnd };
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") && body != Body::Size {
            body = Body::Length(value.parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            body = Body::Size;
        }
    }
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZED: &str = "HTTP/1.1 503 Unavailable\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n1;x=y\r\n\r\r\n0\r\nA: b\r\n\r\n";

    #[test]
    fn a_response_ends_where_it_ends_however_it_is_cut() {
        for (text, status) in [(SIZED, 503), (CHUNKED, 200), ("HTTP/1.0 204 No Content\r\nA: b\r\n\r\n", 204)]
        {
            for cut in 0..text.len() {
                let mut response = Response::default();
                assert_eq!(response.take(&text.as_bytes()[..cut]), Progress::Open, "{text:?} cut at {cut}");
                assert_eq!(
                    response.take(&text.as_bytes()[cut..]),
                    Progress::Whole(status),
                    "{text:?} at {cut}"
                );
            }
            let mut response = Response::default();
            let last = text.bytes().map(|byte| response.take(&[byte])).last();
            assert_eq!(last, Some(Progress::Whole(status)));
        }
    }

    #[test]
    fn without_a_length_the_connection_s_end_is_the_end() {
        let mut response = Response::default();
        assert_eq!(response.take(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nhel"), Progress::Open);
        assert_eq!(response.end(), Progress::Whole(200));
        let mut cut = Response::default();
        assert_eq!(cut.take(&SIZED.as_bytes()[..SIZED.len() - 1]), Progress::Open);
        assert_eq!(cut.end(), Progress::Broken);
        assert_eq!(Response::default().end(), Progress::Broken);
    }

    #[test]
    fn what_is_no_http_is_broken() {
        for text in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        ] {
            assert_eq!(Response::default().take(text.as_bytes()), Progress::Broken, "{text:?}");
        }
        assert_eq!(Response::default().take(&[b'x'; HEAD + 1]), Progress::Broken);
    }
}
