//! Answers from one task to many callers at once, such as those whose requests shared a transaction.
//!
//! To wake a caller on an HTTP worker means a write to that worker's event descriptor; for a batch of a hundred
//! callers that is a hundred writes, while the worker needs to be woken once. So each worker has a letter box
//! ([`open_letter_box`]): the answers of a batch are put in together, and handed out by the worker itself.
//!
//! # Failure behavior
//!
//! An answer is never lost to a letter box: where there is none, or its worker has ended, it is handed out at
//! once. A caller who no longer waits is passed over. If a [`Reply`] is dropped its caller hears so.

use std::cell::RefCell;

use tokio::sync::{mpsc, oneshot};

type LetterBox = mpsc::UnboundedSender<Letter>;
type Letter = Box<dyn FnOnce() + Send>;

thread_local! {
    static LETTER_BOX: RefCell<Option<LetterBox>> = const { RefCell::new(None) };
}

/// Gives the current thread a letter box, once, emptied by a task of the runtime that it runs: which must be
/// this thread's alone, as an HTTP worker's is.
pub fn open_letter_box() {
    LETTER_BOX.with_borrow_mut(|slot| {
        slot.get_or_insert_with(|| {
            let (sender, mut letters) = mpsc::unbounded_channel::<Letter>();
            tokio::spawn(async move {
                while let Some(hand_out) = letters.recv().await {
                    hand_out();
                }
            });
            sender
        });
    });
}

/// What one caller is answered by.
pub struct Reply<T> {
    to: oneshot::Sender<T>,
    letter_box: Option<LetterBox>,
}

/// A caller's two ends: what it is answered by, and what it awaits on this thread.
pub fn channel<T>() -> (Reply<T>, oneshot::Receiver<T>) {
    let (to, answer) = oneshot::channel();
    (Reply { to, letter_box: LETTER_BOX.with_borrow(Clone::clone) }, answer)
}

impl<T> Reply<T> {
    /// Whether nobody waits for the answer any more.
    pub fn is_closed(&self) -> bool {
        self.to.is_closed()
    }

    /// Answers this one caller.
    pub fn send(self, answer: T) {
        // Who no longer waits needs none.
        let _ = self.to.send(answer);
    }
}

/// Answers all of them, with one wake-up for each letter box.
pub fn send_all<T: Send + 'static>(answers: impl IntoIterator<Item = (Reply<T>, T)>) {
    type Answers<T> = Vec<(oneshot::Sender<T>, T)>;
    let mut letters: Vec<(LetterBox, Answers<T>)> = Vec::new();
    for (Reply { to, letter_box }, answer) in answers {
        match letter_box {
            None => drop(to.send(answer)),
            Some(address) => match letters.iter_mut().find(|(known, _)| known.same_channel(&address)) {
                Some((_, letter)) => letter.push((to, answer)),
                None => letters.push((address, vec![(to, answer)])),
            },
        }
    }
    for (letter_box, letter) in letters {
        let hand_out = move || letter.into_iter().for_each(|(to, answer)| drop(to.send(answer)));
        if let Err(mpsc::error::SendError(hand_out)) = letter_box.send(Box::new(hand_out)) {
            hand_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks on a thread of its own, with a letter box, as an HTTP worker does; gives the replies and what comes.
    fn worker(callers: usize) -> (Vec<Reply<usize>>, std::thread::JoinHandle<Vec<Option<usize>>>) {
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                open_letter_box();
                let (replies, answers): (Vec<_>, Vec<_>) = (0..callers).map(|_| channel()).unzip();
                tell.send(replies).unwrap();
                let mut all = Vec::new();
                for answer in answers {
                    all.push(answer.await.ok());
                }
                all
            })
        });
        (told.recv().unwrap(), waiting)
    }

    #[test]
    fn each_caller_on_each_worker_gets_its_own_answer() {
        let workers: Vec<_> = (0..3).map(|_| worker(100)).collect();
        let (mut replies, mut waiting) = (Vec::new(), Vec::new());
        for (worker, (of_worker, thread)) in workers.into_iter().enumerate() {
            replies.extend(of_worker.into_iter().enumerate().map(|(n, reply)| (reply, worker * 1_000 + n)));
            waiting.push(thread);
        }
        send_all(replies);
        for (worker, thread) in waiting.into_iter().enumerate() {
            let expected: Vec<_> = (0..100).map(|n| Some(worker * 1_000 + n)).collect();
            assert_eq!(thread.join().unwrap(), expected);
        }
    }

    #[test]
    fn who_is_dropped_hears_so_and_the_others_are_answered() {
        let (mut replies, waiting) = worker(3);
        drop(replies.remove(1));
        send_all(replies.into_iter().zip([10, 30]));
        assert_eq!(waiting.join().unwrap(), [Some(10), None, Some(30)]);
    }

    #[tokio::test]
    async fn without_a_letter_box_and_after_its_worker_has_ended_answers_come_at_once() {
        let (reply, mut answer) = channel();
        assert!(reply.letter_box.is_none());
        send_all([(reply, 1)]);
        assert_eq!(answer.try_recv(), Ok(1));

        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let open = std::thread::spawn(move || {
            let asked = runtime.block_on(async {
                open_letter_box();
                channel()
            });
            drop(runtime);
            asked
        });
        let (reply, mut answer) = open.join().unwrap();
        assert!(reply.letter_box.as_ref().is_some_and(|letter_box| letter_box.is_closed()));
        send_all([(reply, 2)]);
        assert_eq!(answer.try_recv(), Ok(2));
    }
}
