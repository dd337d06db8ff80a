//! Writes log lines to standard error in a separate thread.
//!
//! A caller never waits for the output. Lines are dropped and counted while the buffer is full.
//! When all buffered lines are written, one line reports the number of dropped lines.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Maximum total size of pending lines, in bytes.
const MAX_PENDING_BYTES: usize = 1 << 20;

/// Buffer of pending log lines.
#[derive(Clone, Default)]
pub(super) struct LogBuffer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    is_writing: bool,
}

impl LogBuffer {
    /// Starts the thread that writes to `output`. When all pending lines are written, it calls
    /// `report` with the number of lines that were dropped since the last call.
    ///
    /// # Errors
    /// The system's error if it cannot start a thread.
    pub(super) fn start(
        &self,
        mut output: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<()> {
        let buffer = self.clone();
        let write = move || {
            let (mut batch, mut reported) = (Vec::new(), 0);
            loop {
                buffer.next_batch(&mut batch);
                let is_written = output.write_all(&batch).and_then(|()| output.flush());
                if is_written.is_err() {
                    let lines = batch.iter().filter(|byte| **byte == b'\n').count();
                    buffer.count_dropped(lines as u64);
                    continue;
                }
                let dropped = buffer.dropped();
                if dropped > reported && buffer.state().pending.is_empty() {
                    report(dropped - reported);
                    reported = dropped;
                }
            }
        };
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(write)
            .map(drop)
    }

    /// Returns the number of lines that were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written, at most for `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.pending.is_empty();
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.state(), timeout, is_busy);
        drop(waited);
    }

    fn append(&self, line: &[u8]) {
        let mut state = self.state();
        if state.pending.len() + line.len() > MAX_PENDING_BYTES {
            self.count_dropped(1);
            return;
        }
        state.pending.extend_from_slice(line);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits for lines and moves all of them to `batch`. The caller has written the previous batch.
    fn next_batch(&self, batch: &mut Vec<u8>) {
        let mut state = self.state();
        state.is_writing = false;
        self.0.changed.notify_all();
        let is_empty = |state: &mut State| state.pending.is_empty();
        let waited = self.0.changed.wait_while(state, is_empty);
        state = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_writing = true;
        batch.clear();
        std::mem::swap(batch, &mut state.pending);
    }

    fn count_dropped(&self, lines: u64) {
        self.0.dropped.fetch_add(lines, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> MakeWriter<'a> for LogBuffer {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(self)
    }
}

/// Appends to a [`LogBuffer`]. The subscriber writes each line with one call.
pub(super) struct LineWriter<'a>(&'a LogBuffer);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// An output whose reader takes one write at a time.
    struct Pipe(SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let sent = self.0.send(bytes.to_vec());
            sent.map(|()| bytes.len())
                .map_err(|_| io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (LogBuffer, Receiver<Vec<u8>>) {
        let (buffer, (output, reader)) = (LogBuffer::default(), sync_channel(0));
        let report_to = buffer.clone();
        let report = move |lines| report_to.append(format!("dropped {lines}\n").as_bytes());
        buffer.start(Pipe(output), report).unwrap();
        (buffer, reader)
    }

    #[test]
    fn full_buffer_drops_lines_without_blocking_and_reports_them_once() {
        let (buffer, reader) = start();
        buffer.append(b"first\n");
        assert_eq!(reader.recv_timeout(TIMEOUT).unwrap(), b"first\n");
        // The writer blocks on this line until the test reads it.
        buffer.append(b"second\n");
        while !buffer.state().is_writing || !buffer.state().pending.is_empty() {
            thread::yield_now();
        }
        let line = vec![b'x'; 1023].into_iter().chain([b'\n']);
        let line: Vec<u8> = line.collect();
        for _ in 0..1024 + 7 {
            buffer.append(&line);
        }
        assert_eq!(buffer.dropped(), 7);
        assert_eq!(buffer.state().pending.len(), MAX_PENDING_BYTES);

        assert_eq!(reader.recv_timeout(TIMEOUT).unwrap(), b"second\n");
        assert_eq!(
            reader.recv_timeout(TIMEOUT).unwrap().len(),
            MAX_PENDING_BYTES
        );
        assert_eq!(reader.recv_timeout(TIMEOUT).unwrap(), b"dropped 7\n");
        buffer.append(b"last\n");
        assert_eq!(reader.recv_timeout(TIMEOUT).unwrap(), b"last\n");
        assert_eq!(buffer.dropped(), 7);
    }

    #[test]
    fn flush_waits_until_all_lines_are_written() {
        let (buffer, reader) = start();
        let lines = 1000;
        let reading = thread::spawn(move || {
            let mut read = 0;
            while read < lines {
                let batch = reader.recv_timeout(TIMEOUT).unwrap();
                read += batch.iter().filter(|byte| **byte == b'\n').count();
            }
            reader
        });
        for _ in 0..lines {
            buffer.append(b"line\n");
        }
        buffer.flush(TIMEOUT);
        assert!(buffer.state().pending.is_empty());
        drop(reading.join().unwrap());
    }

    #[test]
    fn flush_gives_up_when_nobody_reads() {
        let (buffer, _reader) = start();
        buffer.append(b"line\n");
        buffer.flush(Duration::from_millis(1));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (buffer, reader) = start();
        drop(reader);
        buffer.append(b"a\nb\n");
        buffer.flush(TIMEOUT);
        assert_eq!(buffer.dropped(), 2);
    }
}
