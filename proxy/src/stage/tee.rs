//! A body that is read more than once: again by the next attempt, and at the same time by copies for mirrors.
//!
//! What was read is kept while it may be read again, up to [`MOST_KEPT`]; beyond, the body flows on and cannot be repeated.
//! A copy holds what its reader has not taken, up to [`MOST_BEHIND`] and what all copies of a worker may hold; one that falls
//! further behind is cut, so that it never slows the original. Bytes are shared, not copied.
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::body::{Arriving, BodyError};

/// Bytes of a body that are kept for another attempt.
pub const MOST_KEPT: usize = 64 * 1024;
/// Bytes that a copy may be behind the original.
pub const MOST_BEHIND: usize = 256 * 1024;
/// Bytes that all copies of a worker may be behind their originals.
pub const MOST_BEHIND_IN_ALL: usize = 16 * 1024 * 1024;

/// The original. Cheap to clone.
pub struct Tee<B = Arriving>(Rc<RefCell<Original<B>>>);

struct Original<B> {
    inner: B,
    /// What came in, while it may be read again.
    kept: Vec<Frame<Bytes>>,
    kept_bytes: usize,
    keeping: bool,
    /// It came in whole.
    whole: bool,
    /// The reader that may read now: the latest.
    reader: usize,
    copies: Vec<Weak<Line>>,
}

/// One attempt's view of the body. Ends with an error once the next attempt has begun.
pub struct Reader<B = Arriving> {
    original: Rc<RefCell<Original<B>>>,
    number: usize,
    /// How much of what is kept it has read.
    next: usize,
}

/// A mirror's view of the body.
pub struct Copy(Rc<Line>);

/// Bytes that the copies of a worker are behind their originals.
#[derive(Clone, Debug, Default)]
pub struct Behind(Rc<Cell<usize>>);

/// What one copy has not read yet.
#[derive(Default)]
struct Line {
    frames: RefCell<VecDeque<Frame<Bytes>>>,
    bytes: Cell<usize>,
    all: Behind,
    end: Cell<End>,
    reader: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Whole,
    Cut,
}

impl<B> Tee<B> {
    /// Takes `inner`. `keep`: it may be read again.
    pub fn new(inner: B, keep: bool) -> Self {
        Self(Rc::new(RefCell::new(Original {
            inner,
            kept: Vec::new(),
            kept_bytes: 0,
            keeping: keep,
            whole: false,
            reader: 0,
            copies: Vec::new(),
        })))
    }

    /// The body from its beginning. Whoever read it before reads no more.
    pub fn read(&self) -> Reader<B> {
        let mut original = self.0.borrow_mut();
        original.reader += 1;
        Reader { original: Rc::clone(&self.0), number: original.reader, next: 0 }
    }

    /// A copy of all that comes in from now on; what it is behind is part of `all`.
    pub fn copy(&self, all: &Behind) -> Copy {
        let mut line = Line::default();
        line.all = all.clone();
        let line = Rc::new(line);
        self.0.borrow_mut().copies.push(Rc::downgrade(&line));
        Copy(line)
    }

    /// Whether all that came in is still here to be read again.
    pub fn can_repeat(&self) -> bool {
        self.0.borrow().keeping
    }

    /// It will not be read again: what is kept is let go of as it is read.
    pub fn settle(&self) {
        self.0.borrow_mut().keeping = false;
    }
}

impl<B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin> Original<B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.let_go();
                self.end_copies(End::Cut);
                return Poll::Ready(Some(Err(error.into())));
            }
            None => {
                self.whole = true;
                self.end_copies(End::Whole);
                return Poll::Ready(None);
            }
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        for copy in self.copies.iter().filter_map(Weak::upgrade) {
            copy.push(&frame, bytes);
        }
        self.kept_bytes += bytes;
        if self.keeping && self.kept_bytes <= MOST_KEPT {
            self.kept.push(duplicate(&frame));
        } else {
            self.let_go();
        }
        if self.inner.is_end_stream() {
            self.whole = true;
            self.end_copies(End::Whole);
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl<B> Original<B> {
    fn let_go(&mut self) {
        self.keeping = false;
        self.kept = Vec::new();
    }

    fn end_copies(&mut self, end: End) {
        self.copies.drain(..).filter_map(|copy| copy.upgrade()).for_each(|copy| copy.finish(end));
    }
}

impl<B> Drop for Original<B> {
    fn drop(&mut self) {
        self.end_copies(End::Cut);
    }
}

impl Line {
    fn push(&self, frame: &Frame<Bytes>, bytes: usize) {
        if self.end.get() != End::Open {
            return;
        }
        if self.bytes.get() + bytes > MOST_BEHIND || self.all.0.get() + bytes > MOST_BEHIND_IN_ALL {
            return self.finish(End::Cut);
        }
        self.bytes.set(self.bytes.get() + bytes);
        self.all.0.set(self.all.0.get() + bytes);
        self.frames.borrow_mut().push_back(duplicate(frame));
        self.wake();
    }

    fn finish(&self, end: End) {
        if self.end.get() == End::Open {
            self.end.set(end);
        }
        if end == End::Cut {
            self.frames.borrow_mut().clear();
            self.taken(self.bytes.get());
        }
        self.wake();
    }

    fn taken(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.all.0.set(self.all.0.get() - bytes);
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.taken(self.bytes.get());
    }
}

/// The same frame once more; its bytes are shared.
fn duplicate(frame: &Frame<Bytes>) -> Frame<Bytes> {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Frame::data(data.clone()),
        (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
    }
}

impl<B> Reader<B> {
    /// The body, if it may be read again.
    pub fn again(&self) -> Option<Tee<B>> {
        self.original.borrow().keeping.then(|| Tee(Rc::clone(&self.original)))
    }
}

impl<B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin> Body for Reader<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut original = this.original.borrow_mut();
        if original.reader != this.number {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(kept) = original.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(duplicate(kept))));
        }
        if original.whole {
            return Poll::Ready(None);
        }
        let polled = original.poll(cx);
        if original.keeping && matches!(polled, Poll::Ready(Some(Ok(_)))) {
            this.next += 1;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let original = self.original.borrow();
        original.reader == self.number
            && self.next >= original.kept.len()
            && (original.whole || original.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let original = self.original.borrow();
        let kept = original.kept.iter().skip(self.next).filter_map(Frame::data_ref).map(|data| data.len() as u64);
        let (kept, rest) = (kept.sum::<u64>(), original.inner.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(kept + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(kept + upper);
        }
        hint
    }
}

impl Body for Copy {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let line = &self.0;
        if let Some(frame) = line.frames.borrow_mut().pop_front() {
            line.taken(frame.data_ref().map_or(0, Bytes::len));
            return Poll::Ready(Some(Ok(frame)));
        }
        match line.end.get() {
            End::Whole => Poll::Ready(None),
            End::Cut => Poll::Ready(Some(Err(BodyError::CopyCut))),
            End::Open => {
                line.reader.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.end.get() == End::Whole && self.0.frames.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body_util::BodyExt;

    use super::*;

    /// A body whose frames are given one by one, as a caller sends them.
    #[derive(Clone, Default)]
    struct Fed(Rc<RefCell<(VecDeque<Bytes>, bool)>>);

    impl Fed {
        fn give(&self, bytes: usize) {
            self.0.borrow_mut().0.push_back(Bytes::from(vec![b'x'; bytes]));
        }
        fn end(&self) {
            self.0.borrow_mut().1 = true;
        }
    }

    impl Body for Fed {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let mut fed = self.0.borrow_mut();
            match (fed.0.pop_front(), fed.1) {
                (Some(bytes), _) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                (None, true) => Poll::Ready(None),
                (None, false) => Poll::Pending,
            }
        }
    }

    /// Reads what is there now.
    async fn available(body: &mut (impl Body<Data = Bytes, Error = BodyError> + Unpin)) -> (usize, Option<BodyError>) {
        let mut bytes = 0;
        poll_fn(|cx| {
            loop {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, Bytes::len),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready((bytes, Some(error))),
                    Poll::Ready(None) | Poll::Pending => return Poll::Ready((bytes, None)),
                }
            }
        })
        .await
    }

    fn tee(keep: bool) -> (Fed, Tee<Fed>) {
        let fed = Fed::default();
        (fed.clone(), Tee::new(fed, keep))
    }

    #[tokio::test]
    async fn the_next_attempt_reads_what_the_last_one_read_and_what_comes_after() {
        let (fed, tee) = tee(true);
        fed.give(100);
        let mut first = tee.read();
        assert_eq!(available(&mut first).await.0, 100);
        assert!(tee.can_repeat());
        let mut second = tee.read();
        fed.give(50);
        fed.end();
        let error = available(&mut first).await.1;
        assert!(
            matches!(error, Some(BodyError::Superseded)),
            "the first must not take what is the second's: {error:?}"
        );
        assert_eq!(second.collect().await.expect("a whole body").to_bytes().len(), 150);
        second = tee.read();
        assert_eq!(second.collect().await.expect("a whole body").to_bytes().len(), 150);
    }

    #[tokio::test]
    async fn a_body_beyond_what_is_kept_flows_on_and_cannot_be_repeated() {
        let (fed, tee) = tee(true);
        let mut reader = tee.read();
        let mut sent = 0;
        for _ in 0..20 {
            fed.give(MOST_KEPT / 8);
            sent += available(&mut reader).await.0;
            assert!(tee.0.borrow().kept.iter().filter_map(Frame::data_ref).map(Bytes::len).sum::<usize>() <= MOST_KEPT);
        }
        assert_eq!(sent, 20 * (MOST_KEPT / 8));
        assert!(!tee.can_repeat());
    }

    #[tokio::test]
    async fn a_copy_gets_all_while_it_keeps_up_and_is_cut_when_it_lags() {
        let (fed, tee) = tee(false);
        let mut reader = tee.read();
        let all = Behind::default();
        let (mut quick, mut slow) = (tee.copy(&all), tee.copy(&all));
        let mut copied = 0;
        for _ in 0..4 {
            fed.give(MOST_BEHIND / 2);
            assert_eq!(available(&mut reader).await.0, MOST_BEHIND / 2, "the original is never held up");
            copied += available(&mut quick).await.0;
        }
        fed.end();
        available(&mut reader).await;
        assert_eq!(copied, 2 * MOST_BEHIND);
        assert!(quick.is_end_stream());
        let (bytes, error) = available(&mut slow).await;
        assert!(bytes == 0 && matches!(error, Some(BodyError::CopyCut)), "{bytes} {error:?}");
        assert_eq!((slow.0.frames.borrow().len(), all.0.get()), (0, 0), "what it held is let go of");
    }

    #[tokio::test]
    async fn a_copy_is_cut_when_the_original_ends_early() {
        let (fed, tee) = tee(false);
        fed.give(10);
        let mut reader = tee.read();
        let all = Behind::default();
        let mut copy = tee.copy(&all);
        let unread = tee.copy(&all);
        assert_eq!(available(&mut reader).await.0, 10);
        assert_eq!(all.0.get(), 20);
        drop(unread);
        assert_eq!(all.0.get(), 10, "what was behind is nobody's");
        drop((reader, tee));
        assert!(copy.frame().await.is_some_and(|frame| frame.is_err()));
        assert_eq!(all.0.get(), 0);
    }

    #[tokio::test]
    async fn all_copies_together_are_bounded() {
        let all = Behind::default();
        let copies: Vec<_> = (0..2 * MOST_BEHIND_IN_ALL / MOST_BEHIND)
            .map(|_| async {
                let (fed, tee) = tee(false);
                let copy = tee.copy(&all);
                fed.give(MOST_BEHIND);
                available(&mut tee.read()).await;
                (tee, copy)
            })
            .collect();
        let mut held = Vec::new();
        for copy in copies {
            held.push(copy.await);
            assert!(all.0.get() <= MOST_BEHIND_IN_ALL);
        }
        let whole = |(_, copy): &&(Tee<Fed>, Copy)| copy.0.end.get() == End::Open;
        assert_eq!(held.iter().filter(whole).count(), MOST_BEHIND_IN_ALL / MOST_BEHIND);
    }
}
