# A small CI job, as every runner must be able to do it: check out a repository, build something, test it, look at a database.
# Runs in an empty folder, without network; stops at the first command that fails. A step whose tool is not on this runner is left out.
has() { command -v "$1" >/dev/null 2>&1; }

if has git; then
    git init -q origin
    git -C origin config user.email ci@example.invalid
    git -C origin config user.name CI
    printf 'print(sum(range(10)))\n' > origin/job.py
    printf 'console.log([1, 2, 3].map(n => n * n).join())\n' > origin/job.js
    git -C origin add .
    git -C origin commit -q -m 'a job'
    git clone -q origin checkout
    test "$(git -C checkout log --format=%s)" = 'a job'
    cd checkout
    has python3 && test "$(python3 job.py)" = 45
    ! has node || test "$(node job.js)" = 1,4,9
fi
if has sqlite3; then
    sqlite3 fixtures.db 'create table documents (id integer primary key, body text); insert into documents (body) values (1), (2);'
    test "$(sqlite3 fixtures.db 'select count(*) from documents; pragma integrity_check;' | tr '\n' ' ')" = '2 ok '
fi
if has rustc; then
    printf 'fn main() { println!("built"); }\n' > main.rs
    rustc main.rs
    test "$(./main)" = built
fi
if has cedar; then
    printf 'permit (principal, action, resource);\n' > all.cedar
    cedar check-parse --policies all.cedar
fi
echo 'the job is done'
