"""How test files are given to processes."""

from xdist import scheduler
from xdist import workermanage


class FileScheduler(scheduler.LoadFileScheduling):
  """`--dist loadfile` that goes on after a process has crashed.

  In xdist 3.8 all that a crashed process was given is given to others: they
  repeat the crash, and wait forever for results of files that were completed.
  """

  def remove_node(self, node: workermanage.WorkerController) -> str | None:
    """Hand on what a process has not begun; the test that crashed it."""
    given = self.assigned_work.pop(node)
    crashed = None
    for file, tests in given.items():
      waiting = [test for test, completed in tests.items() if not completed]
      if waiting and crashed is None:
        crashed = waiting.pop(0)
      if waiting:
        self.workqueue[file] = dict.fromkeys(waiting, False)
    if crashed is not None:
      for other in self.assigned_work:
        self._reschedule(other)
    return crashed

  def schedule(self) -> None:
    """Give work to new processes, and at once what they do after it.

    A process begins its last test when it knows that no other follows.
    """
    super().schedule()
    for node in self.nodes:
      self._reschedule(node)
