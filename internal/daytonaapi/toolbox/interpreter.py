# The worker of an interpreter context. It reads jobs, one JSON object a line,
# from its stdin, runs each in the same module, and writes what happens, one
# JSON object a line, to its stdout. What programs print goes through pipes, so
# that also what they start is heard; they have no stdin.
import sys


def worker():
    import builtins, json, linecache, os, threading, traceback, types, uuid

    jobs = os.fdopen(os.dup(0), 'r', encoding='utf-8', newline='\n')
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    lock = threading.Lock()
    job = [None]

    def tell(kind, text='', name='', value='', trace=''):
        line = json.dumps({'job': job[0], 'type': kind, 'text': text, 'name': name, 'value': value, 'traceback': trace})
        data = (line + '\n').encode()
        with lock:
            while data:
                data = data[os.write(out, data):]

    class Pump(threading.Thread):
        # Reads what is printed to one descriptor. A mark, which nobody can
        # know before, says that all before it was told.
        def __init__(self, fd, kind):
            super().__init__(daemon=True)
            self.kind, self.mark, self.seen = kind, None, threading.Event()
            self.source, end = os.pipe()
            os.dup2(end, fd)
            os.close(end)
            self.fd = fd

        def run(self):
            held = b''
            while True:
                try:
                    data = os.read(self.source, 65536)
                except OSError:
                    return
                if not data:
                    return
                held += data
                mark = self.mark
                if mark and mark in held:
                    before, _, held = held.partition(mark)
                    self.show(before, True)
                    self.mark = None
                    self.seen.set()
                    continue
                held = self.show(held, False)

        def show(self, data, last):
            keep = 0
            if not last:
                if self.mark:
                    for n in range(min(len(data), len(self.mark) - 1), 0, -1):
                        if data.endswith(self.mark[:n]):
                            keep = n
                            break
                if not keep:
                    for n in range(1, min(4, len(data) + 1)):
                        if data[-n] & 0xC0 == 0xC0:
                            size = 2 if data[-n] < 0xE0 else 3 if data[-n] < 0xF0 else 4
                            keep = n if n < size else 0
                            break
            end = len(data) - keep
            if end:
                tell(self.kind, data[:end].decode('utf-8', 'replace'))
            return data[end:]

        def drain(self):
            self.seen.clear()
            mark = uuid.uuid4().bytes
            self.mark = mark
            while mark:
                mark = mark[os.write(self.fd, mark):]
            self.seen.wait(5)

    sys.stdout = open(1, 'w', encoding='utf-8', errors='backslashreplace', buffering=1, closefd=False)
    sys.stderr = open(2, 'w', encoding='utf-8', errors='backslashreplace', buffering=1, closefd=False)
    pumps = [Pump(1, 'stdout'), Pump(2, 'stderr')]
    for pump in pumps:
        pump.start()
    main = types.ModuleType('__main__')
    main.__builtins__ = builtins
    sys.modules['__main__'] = main
    sys.argv[:] = ['']
    sys.path.insert(0, '')
    count = 0
    while True:
        try:
            line = jobs.readline()
        except KeyboardInterrupt:
            continue
        if not line:
            return
        task = json.loads(line)
        job[0] = task['job']
        end = 'completed'
        before = dict(os.environ)
        try:
            tell('started')
            os.environ.update(task.get('envs') or {})
            count += 1
            name = '<cell %d>' % count
            code = task['code']
            linecache.cache[name] = (len(code), None, code.splitlines(True), name)
            exec(compile(code, name, 'exec'), main.__dict__)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                end = 'interrupted'
            if not (isinstance(error, SystemExit) and error.code in (None, 0)):
                trace = error.__traceback__
                while trace is not None and not trace.tb_frame.f_code.co_filename.startswith('<cell '):
                    trace = trace.tb_next
                failure = (type(error).__name__, str(error), ''.join(traceback.format_exception(type(error), error, trace)))
            else:
                failure = None
        else:
            failure = None
        while True:
            try:
                for stream in (sys.stdout, sys.stderr):
                    try:
                        stream.flush()
                    except Exception:
                        pass
                for pump in pumps:
                    pump.drain()
                os.environ.clear()
                os.environ.update(before)
                break
            except KeyboardInterrupt:
                pass
        if failure:
            tell('error', '', *failure)
        tell('control', end)
        job[0] = None


worker()
