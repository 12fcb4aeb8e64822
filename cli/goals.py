"""`remit plan` and `remit submit`: goals in."""

import subprocess
import sys

import click
import msgspec

from cli.follow import submit_goal
from cli.speak import common, ends_well, fail, line, principal_option, talk, with_bus
from shared.events import GoalRejected, PlanCreated
from shared.plan import Step, read_goal
from shared.status import EXIT_REJECTED, EXIT_USAGE


def goal_options(command: click.decorators.FC) -> click.decorators.FC:
    """What a goal may say besides its words; `payload` takes them."""
    for option in reversed(
        [
            click.option("--task", "tasks", multiple=True, help="Run this task; several run in the order given."),
            click.option("--playbook", help="Run this playbook; `remit playbooks ls` shows them."),
            click.option("--retry-of", type=int, metavar="RUN", help="Run the steps of this run again."),
            click.option("--from-step", metavar="STEP", help="With --retry-of: keep what came before this step."),
            click.option("--directive", help="What is allowed (default: `default`)."),
            click.option("--host", "hosts", multiple=True, help="Only this host; may be repeated."),
            click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter; VALUE as JSON."),
            click.option("--max-steps", type=int, help="Steps at most (1 to 100)."),
            click.option(
                "--time-budget", "--time-budget-s", "time_budget_s", type=int, help="Seconds at most (1 to 86400)."
            ),
            click.option("--token-budget", type=int, help="Tokens at most (0 to 1000000)."),
        ]
    ):
        command = option(command)
    return command


def _goal(command: click.decorators.FC) -> click.decorators.FC:
    return click.argument("goal", required=False)(goal_options(command))


def payload(
    goal: str | None,
    tasks: tuple[str, ...],
    playbook: str | None,
    retry_of: int | None,
    from_step: str | None,
    directive: str | None,
    hosts: tuple[str, ...],
    params: tuple[str, ...],
    max_steps: int | None,
    time_budget_s: int | None,
    token_budget: int | None,
) -> bytes:
    """The goal as it goes over the wire, checked where the planner would check it."""
    named: dict[str, object] = {}
    for pair in params:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            fail(f"--param {pair!r} is not NAME=VALUE", EXIT_USAGE)
        try:
            named[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            named[name] = value  # a bare word is text
        except RecursionError:
            fail(f"--param {name} is nested too deep", EXIT_USAGE)
    fields = {
        "goal": goal,
        "tasks": list(tasks) or None,
        "playbook": playbook,
        "retry_of": retry_of,
        "from_step": from_step,
        "directive": directive,
        "params": named or None,
        "hosts": list(hosts) or None,
        "max_steps": max_steps,
        "time_budget_s": time_budget_s,
        "token_budget": token_budget,
    }
    try:
        body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
    except UnicodeEncodeError:
        fail("goal: it holds bytes that are not text", EXIT_USAGE)
    _, problems = read_goal(body)
    if problems:
        fail("; ".join(f"{one.field}: {one.reason}" for one in problems), EXIT_USAGE)
    return body


def preview(body: bytes) -> subprocess.CompletedProcess[bytes]:
    """What the planner would say of a goal as things stand: a plan, or with `EXIT_REJECTED` why there is none."""
    argv = [sys.executable, "-m", "services.planner", "--preview"]
    return subprocess.run(argv, input=body, stdout=subprocess.PIPE)


@click.command()
@_goal
@common
@ends_well
def plan(output: str, **given: object) -> None:
    """Print the plan for GOAL without running it.

    \b
    remit plan "check logs and GPU"
    remit plan --task noop --task noop -o json
    remit plan --playbook fleet_health --param window_s=300
    """
    body = payload(**given)  # type: ignore[arg-type]  # click hands over what the options say
    done = preview(body)
    if done.returncode == EXIT_REJECTED:
        rejected = msgspec.json.decode(done.stdout, type=GoalRejected)
        if output == "json":
            click.echo(done.stdout.decode().strip())
        for problem in rejected.problems:
            talk(f"rejected: {problem['field']}: {problem['reason']}")
        raise SystemExit(EXIT_REJECTED)
    if done.returncode:
        raise SystemExit(done.returncode)
    if output == "json":
        click.echo(done.stdout.decode().strip())
        return
    made = msgspec.json.decode(done.stdout, type=PlanCreated)
    if made.is_gated:
        line("the run asks for approval before it starts")
    for number, step in enumerate(made.steps, 1):
        line(f"{number}. {_described(step, made)}")
    for note in made.notes:
        line(f"note: {note}")
    budgets = made.budgets
    click.echo(
        f"directive {made.directive.name}; at most {budgets.max_steps} steps, {budgets.time_budget_s} s, "
        f"{budgets.token_budget} tokens"
    )
    click.echo(f"plan hash {made.plan_hash}")


def _described(step: Step, plan: PlanCreated) -> str:
    """A step in one line: what it is and why, and what has to be so before it runs."""
    kind = "" if step.kind == "task" else f" ({step.kind})"
    after = f", after {', '.join(step.needs)}" if step.needs else ""
    when = f", when {' '.join(step.when.split())}" if step.when else ""
    host = f", on {step.host}" if step.host else ""
    asks = ", asks for approval" if step.approval or step.kind == "approval" else ""
    undo = f", undone by {step.compensation}" if step.compensation else ""
    only = ", only when the run is rolled back" if step.id in plan.compensations else ""
    kept = f", reused from run {plan.retry_of}" if step.id in plan.reused else ""
    return f"{step.id}{kind}: {step.why}{after}{when}{host}{asks}{undo}{only}{kept}"


@click.command()
@_goal
@click.option("--wait", is_flag=True, help="Follow the run to its end; the exit code is its status.")
@principal_option
@common
@ends_well
def submit(output: str, wait: bool, principal: str, **given: object) -> None:
    """Submit GOAL and print the run's number.

    \b
    remit submit "check logs and GPU" --wait
    remit submit --task log_triage --task gpu_report --time-budget 120
    remit submit --playbook fleet_health --wait
    remit submit --retry-of 42 --from-step verify
    Exit codes with --wait: 0 succeeded, 1 failed, 3 rejected or cancelled, 7 a budget ended.
    """
    body = payload(**given)  # type: ignore[arg-type]

    raise SystemExit(with_bus(lambda bus: submit_goal(bus, body, principal, output=output, wait=wait)))
